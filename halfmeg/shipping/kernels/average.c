/* The mean; what lies outside counts as the zero point, that is as nothing. */
static void pool_average(const struct pooling *c, const uint8_t *in, uint8_t *out, float *logits)
{
    struct rounding rounding = rounding_at(c->zero);
    for (int32_t y = 0; y < c->out_height; y++)
        for (int32_t x = 0; x < c->out_width; x++)
            for (int32_t channel = 0; channel < c->channels; channel++) {
                int32_t row, rows, first, columns, sum = 0;
                window(y * c->stride_y - c->top, c->kernel_height, c->in_height, &row, &rows);
                window(x * c->stride_x - c->left, c->kernel_width, c->in_width, &first, &columns);
                for (; row < rows; row++)
                    for (int32_t column = first; column < columns; column++)
                        sum += in[(row * c->in_width + column) * c->channels + channel] - c->outside;
                if (!out) {
                    *logits++ = (float)sum * c->scale;
                    continue;
                }
                uint8_t value = requantize(sum, c->scale, rounding);
                *out++ = c->table ? c->table[value] : value;
            }
}
