static void pool_maximum(const struct pooling *c, const uint8_t *in, uint8_t *out)
{
    for (int32_t y = 0; y < c->out_height; y++)
        for (int32_t x = 0; x < c->out_width; x++)
            for (int32_t channel = 0; channel < c->channels; channel++) {
                int32_t row, rows, first, columns;
                uint8_t largest = 0;
                window(y * c->stride_y - c->top, c->kernel_height, c->in_height, &row, &rows);
                window(x * c->stride_x - c->left, c->kernel_width, c->in_width, &first, &columns);
                for (; row < rows; row++)
                    for (int32_t column = first; column < columns; column++) {
                        uint8_t value = in[(row * c->in_width + column) * c->channels + channel];
                        largest = value > largest ? value : largest;
                    }
                *out++ = largest;
            }
}
