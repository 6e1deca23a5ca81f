struct softmax {
    const uint16_t *exponentials; /* of how far a byte lies below the largest one */
    const uint8_t *table;         /* or 0 */
    int32_t positions, channels, share_bits;
    float scale;
    uint8_t zero;
};

/* The softmax of each position's channels; `out` may be `in`. */
static void share(const struct softmax *c, const uint8_t *in, uint8_t *out, float *logits)
{
    struct rounding rounding = rounding_at(c->zero);
    for (int32_t position = 0; position < c->positions; position++, in += c->channels) {
        uint8_t largest = 0;
        uint32_t total = 0;
        for (int32_t i = 0; i < c->channels; i++)
            largest = in[i] > largest ? in[i] : largest;
        for (int32_t i = 0; i < c->channels; i++)
            total += c->exponentials[largest - in[i]];
        for (int32_t i = 0; i < c->channels; i++) {
            uint32_t part = (uint32_t)c->exponentials[largest - in[i]] << c->share_bits;
            finish((int32_t)((part + total / 2) / total), c->scale, c->table, rounding,
                   position * c->channels + i, out, logits);
        }
    }
}
