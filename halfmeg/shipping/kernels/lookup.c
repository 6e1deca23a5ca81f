/* A function of one value; `out` may be `in`. */
static void look_up(const uint8_t *table, const uint8_t *in, int32_t values, uint8_t *out)
{
    for (int32_t i = 0; i < values; i++)
        out[i] = table[in[i]];
}
