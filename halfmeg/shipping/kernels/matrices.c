struct matrix_product {
    const uint8_t *table; /* or 0 */
    int32_t count, rows, columns, inner;
    float scale;
    uint8_t zero_in[2], zero;
};

/* Matrices of rows x inner and columns x inner, one pair after another, to rows x columns. */
static void multiply_matrices(const struct matrix_product *c, const uint8_t *in0,
                              const uint8_t *in1, uint8_t *out, float *logits)
{
    struct rounding rounding = rounding_at(c->zero);
    int32_t place = 0;
    for (int32_t n = 0; n < c->count; n++, in1 += c->columns * c->inner)
        for (int32_t row = 0; row < c->rows; row++, in0 += c->inner)
            for (int32_t column = 0; column < c->columns; column++, place++) {
                const uint8_t *other = in1 + column * c->inner;
                int32_t sum = 0;
                for (int32_t i = 0; i < c->inner; i++)
                    sum += (in0[i] - c->zero_in[0]) * (other[i] - c->zero_in[1]);
                finish(sum, c->scale, c->table, rounding, place, out, logits);
            }
}
