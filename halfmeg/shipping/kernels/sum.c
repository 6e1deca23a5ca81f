/* A weighted sum of one or two maps. */
struct combination {
    const int32_t *multiplier[2], *offset;
    const uint8_t *table; /* or 0 */
    int32_t inputs, height, width, channels;
    struct steps in[2], by[2], plus; /* of the inputs, the multipliers and the offset */
    float scale;
    uint8_t zero;
};

static inline int32_t weigh(const struct combination *c, int32_t y, int32_t x, int32_t channel,
                            int32_t first, int32_t second)
{
    int32_t sum = c->offset[at(c->plus, y, x, channel)];
    sum += c->multiplier[0][at(c->by[0], y, x, channel)] * first;
    if (c->inputs == 2)
        sum += c->multiplier[1][at(c->by[1], y, x, channel)] * second;
    return sum;
}

static inline uint8_t weighed(const struct combination *c, int32_t sum, struct rounding rounding)
{
    uint8_t value = requantize(sum, c->scale, rounding);
    return c->table ? c->table[value] : value;
}
