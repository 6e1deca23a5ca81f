/* Takes each byte from another place, in even steps: to the next row, column and channel. */
static void walk(int32_t height, int32_t row_step, int32_t width, int32_t column_step,
                 int32_t channels, int32_t channel_step, const uint8_t *in, uint8_t *out)
{
    for (int32_t y = 0; y < height; y++)
        for (int32_t x = 0; x < width; x++)
            for (int32_t channel = 0; channel < channels; channel++)
                *out++ = in[y * row_step + x * column_step + channel * channel_step];
}
