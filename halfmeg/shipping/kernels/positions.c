struct convolution {
    const int8_t *weight;        /* channels x groups of four */
    const int32_t *bias;         /* classes of rows x classes of columns x channels */
    const float *scale;          /* channels */
    const uint8_t *table;        /* or 0 */
    const uint8_t *row_class;    /* or 0 where all positions have the same bias */
    const uint8_t *column_class;
    int32_t column_classes;
    int32_t in_height, in_width, in_channels, groups;
    int32_t out_height, out_width, out_channels; /* after pooling */
    int32_t kernel_height, kernel_width, stride_y, stride_x, dilation_y, dilation_x, top, left;
    int32_t pool_height, pool_width, pool_stride_y, pool_stride_x;
    int32_t fours; /* length of a filter, in groups of four */
    uint8_t outside, zero;
};

/* One position of a convolution and the place of the pooled result that it takes part in. */
struct position {
    int32_t row, column, pool_row, pool_column;
};

static void advance(const struct convolution *c, struct position *p)
{
    if (++p->pool_column < c->pool_width)
        return;
    p->pool_column = 0;
    if (++p->pool_row < c->pool_height)
        return;
    p->pool_row = 0;
    if (++p->column < c->out_width)
        return;
    p->column = 0;
    p->row++;
}

static const int32_t *bias_at(const struct convolution *c, int32_t y, int32_t x)
{
    if (!c->row_class)
        return c->bias;
    return c->bias + (c->row_class[y] * c->column_classes + c->column_class[x]) * c->out_channels;
}

/* Writes a byte, or where others of its window stand already, the larger one. */
static inline void put(uint8_t *to, uint8_t value, int is_first)
{
    if (is_first || value > *to)
        *to = value;
}
