struct normalization {
    const int32_t *multiplier, *offset; /* channels */
    const uint8_t *table;               /* or 0 */
    int32_t positions, channels;
    int32_t root_bits, quotient_bits, reciprocal_bits;
    uint64_t floor;
    float scale;
    uint8_t zero;
};

/* The root of a number below 2^52, rounded down. */
static uint32_t root_of(uint64_t number)
{
    uint64_t root = 0;
    for (uint64_t bit = UINT64_C(1) << 50; bit; bit >>= 2) {
        int fits = number >= root + bit;
        if (fits)
            number -= root + bit;
        root = (root >> 1) + (fits ? bit : 0);
    }
    return (uint32_t)root;
}

/* Each position's channels are brought to mean 0 and deviation 1; `out` may be `in`. */
static void normalize(const struct normalization *c, const uint8_t *in, uint8_t *out, float *logits)
{
    struct rounding rounding = rounding_at(c->zero);
    /* what is shifted to the right is made positive by 2^60 first */
    uint64_t half = (UINT64_C(1) << 60) + (UINT64_C(1) << (c->reciprocal_bits - 1));
    int64_t raised = INT64_C(1) << (60 - c->reciprocal_bits);
    for (int32_t position = 0; position < c->positions; position++, in += c->channels) {
        int32_t first = position * c->channels;
        uint32_t total = 0;
        uint64_t squares = 0; /* from 66,052 values they may pass 2^32 */
        for (int32_t i = 0; i < c->channels; i++) {
            total += in[i];
            squares += (uint32_t)in[i] * in[i];
        }
        uint64_t spread = squares * (uint32_t)c->channels - (uint64_t)total * total;
        uint32_t root = root_of((spread + c->floor) << (2 * c->root_bits));
        int64_t reciprocal = (int64_t)(
            (UINT64_C(1) << (c->root_bits + c->quotient_bits + c->reciprocal_bits)) / root);
        for (int32_t i = 0; i < c->channels; i++) {
            int64_t product = (c->channels * (int32_t)in[i] - (int32_t)total) * reciprocal;
            int64_t positive = (int64_t)(((uint64_t)product + half) >> c->reciprocal_bits);
            int32_t sum = (int32_t)(positive - raised) * c->multiplier[i] + c->offset[i];
            finish(sum, c->scale, c->table, rounding, first + i, out, logits);
        }
    }
}
