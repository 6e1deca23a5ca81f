/* Writes a map's channels among those of a wider one. */
static void place_channels(const uint8_t *table, const uint8_t *in, int32_t positions,
                           int32_t channels, uint8_t *out, int32_t out_channels)
{
    for (int32_t i = 0; i < positions; i++, out += out_channels)
        for (int32_t channel = 0; channel < channels; channel++)
            out[channel] = table[*in++];
}
