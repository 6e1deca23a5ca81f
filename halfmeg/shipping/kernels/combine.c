struct combination {
    const int32_t *multiplier[2], *offset;
    const uint8_t *table; /* or 0 */
    int32_t inputs, height, width, channels;
    struct steps in[2], by[2], plus; /* of the inputs, the multipliers and the offset */
    float scale;
    uint8_t zero;
};

/* A weighted sum of one or two maps; `out` may be one of them. */
static void combine(const struct combination *c, const uint8_t *in0, const uint8_t *in1,
                    uint8_t *out, float *logits)
{
    struct rounding rounding = rounding_at(c->zero);
    int32_t place = 0;
    for (int32_t y = 0; y < c->height; y++)
        for (int32_t x = 0; x < c->width; x++)
            for (int32_t channel = 0; channel < c->channels; channel++, place++) {
                int32_t sum = c->offset[at(c->plus, y, x, channel)];
                sum += c->multiplier[0][at(c->by[0], y, x, channel)] *
                       in0[at(c->in[0], y, x, channel)];
                if (c->inputs == 2)
                    sum += c->multiplier[1][at(c->by[1], y, x, channel)] *
                           in1[at(c->in[1], y, x, channel)];
                if (!out) {
                    logits[place] = (float)sum * c->scale;
                    continue;
                }
                uint8_t value = requantize(sum, c->scale, rounding);
                out[place] = c->table ? c->table[value] : value;
            }
}
