/* Takes rows, columns and channels from other places; below 0 is outside. */
static void take(const int16_t *rows, const int16_t *columns, const int16_t *from, int32_t height,
                 int32_t width, int32_t channels, int32_t in_width, int32_t in_channels,
                 uint8_t outside, const uint8_t *in, uint8_t *out)
{
    for (int32_t y = 0; y < height; y++)
        for (int32_t x = 0; x < width; x++)
            for (int32_t channel = 0; channel < channels; channel++) {
                int is_outside = rows[y] < 0 || columns[x] < 0 || from[channel] < 0;
                *out++ = is_outside ? outside
                                    : in[(rows[y] * in_width + columns[x]) * in_channels +
                                         from[channel]];
            }
}
