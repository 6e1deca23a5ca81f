/* An array that broadcasts to a map: how far to go for the next row, column and channel. */
struct steps {
    int32_t row, column, channel;
};

static inline int32_t at(struct steps s, int32_t y, int32_t x, int32_t channel)
{
    return y * s.row + x * s.column + channel * s.channel;
}
