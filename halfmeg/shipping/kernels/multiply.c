struct product {
    const uint8_t *table; /* or 0 */
    int32_t height, width, channels;
    struct steps in[2];
    float scale;
    uint8_t zero_in[2], zero;
};

/* The product of two maps; `out` may be one of them. */
static void multiply(const struct product *c, const uint8_t *in0, const uint8_t *in1, uint8_t *out,
                     float *logits)
{
    struct rounding rounding = rounding_at(c->zero);
    int32_t place = 0;
    for (int32_t y = 0; y < c->height; y++)
        for (int32_t x = 0; x < c->width; x++)
            for (int32_t channel = 0; channel < c->channels; channel++, place++) {
                int32_t sum = (in0[at(c->in[0], y, x, channel)] - c->zero_in[0]) *
                              (in1[at(c->in[1], y, x, channel)] - c->zero_in[1]);
                if (!out) {
                    logits[place] = (float)sum * c->scale;
                    continue;
                }
                uint8_t value = requantize(sum, c->scale, rounding);
                out[place] = c->table ? c->table[value] : value;
            }
}
