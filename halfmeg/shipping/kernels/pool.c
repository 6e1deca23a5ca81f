struct pooling {
    const uint8_t *table; /* or 0 */
    int32_t in_height, in_width, channels, out_height, out_width;
    int32_t kernel_height, kernel_width, stride_y, stride_x, top, left;
    float scale; /* of means */
    uint8_t outside, zero;
};

/* The part of a window that lies inside: from `first` to before `end`. */
static void window(int32_t start, int32_t kernel, int32_t side, int32_t *first, int32_t *end)
{
    *first = start < 0 ? 0 : start;
    *end = start + kernel > side ? side : start + kernel;
}
