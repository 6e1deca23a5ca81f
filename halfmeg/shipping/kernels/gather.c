/* Takes each byte from another place; below 0 is outside. */
static void gather(const int32_t *places, int32_t values, uint8_t outside, const uint8_t *in,
                   uint8_t *out)
{
    for (int32_t i = 0; i < values; i++)
        out[i] = places[i] < 0 ? outside : in[places[i]];
}
