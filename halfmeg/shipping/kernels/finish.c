/* Writes a sum as a byte, or if `out` is 0 as a logit. */
static inline void finish(int32_t sum, float scale, const uint8_t *table, struct rounding rounding,
                          int32_t place, uint8_t *out, float *logits)
{
    if (!out) {
        logits[place] = (float)sum * scale;
        return;
    }
    uint8_t value = requantize(sum, scale, rounding);
    out[place] = table ? table[value] : value;
}
