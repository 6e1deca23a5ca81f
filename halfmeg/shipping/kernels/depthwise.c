/* A convolution with one filter for each channel; its weights are kernel height x kernel width x
 * channels. */
static void convolve_channels(const struct convolution *c, const uint8_t *in, uint8_t *out)
{
    struct rounding rounding = rounding_at(c->zero);
    int32_t total = c->out_height * c->out_width * c->pool_height * c->pool_width;
    struct position p = {0, 0, 0, 0};
    for (int32_t n = 0; n < total; n++, advance(c, &p)) {
        int32_t y = p.row * c->pool_stride_y + p.pool_row;
        int32_t x = p.column * c->pool_stride_x + p.pool_column;
        const int32_t *bias = bias_at(c, y, x);
        uint8_t *to = out + (p.row * c->out_width + p.column) * c->out_channels;
        int is_first = p.pool_row == 0 && p.pool_column == 0;
        for (int32_t channel = 0; channel < c->out_channels; channel++) {
            const int8_t *weight = c->weight + channel;
            int32_t sum = bias[channel];
            for (int32_t i = 0; i < c->kernel_height; i++) {
                int32_t row = y * c->stride_y - c->top + i * c->dilation_y;
                int inside = row >= 0 && row < c->in_height;
                int32_t column = x * c->stride_x - c->left;
                for (int32_t j = 0; j < c->kernel_width; j++, column += c->dilation_x) {
                    int32_t value = c->outside;
                    if (inside && column >= 0 && column < c->in_width)
                        value = in[(row * c->in_width + column) * c->in_channels + channel];
                    sum += *weight * value;
                    weight += c->out_channels;
                }
            }
            uint8_t value = requantize(sum, c->scale[channel], rounding);
            put(to + channel, c->table ? c->table[value] : value, is_first);
        }
    }
}
