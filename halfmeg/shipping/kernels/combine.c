/* `out` may be one of the maps. */
static void combine(const struct combination *c, const uint8_t *in0, const uint8_t *in1,
                    uint8_t *out, float *logits)
{
    struct rounding rounding = rounding_at(c->zero);
    int32_t place = 0;
    for (int32_t y = 0; y < c->height; y++)
        for (int32_t x = 0; x < c->width; x++)
            for (int32_t channel = 0; channel < c->channels; channel++, place++) {
                int32_t first = in0[at(c->in[0], y, x, channel)];
                int32_t second = c->inputs == 2 ? in1[at(c->in[1], y, x, channel)] : 0;
                int32_t sum = weigh(c, y, x, channel, first, second);
                if (out)
                    out[place] = weighed(c, sum, rounding);
                else
                    logits[place] = (float)sum * c->scale;
            }
}
