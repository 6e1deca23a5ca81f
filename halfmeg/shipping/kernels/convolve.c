#if defined(__GNUC__)
#define OWN_FUNCTION __attribute__((noinline)) /* as its loop needs all registers */
#else
#define OWN_FUNCTION
#endif

/* The patch holds the input of two positions, unrolled, as 16-bit values: of each four values
 * those of the first position, then those of the second. `dot` adds the products of two filters
 * with both to sums: filter 0 at both positions, then filter 1. How four values are ordered is a
 * matter of `lane` and `dot` alone. */
#if defined(__ARM_FEATURE_MVE) && !defined(__ARM_BIG_ENDIAN)
#include <arm_mve.h>

static inline int32_t lane(int32_t k) { return k; }

static inline void widen_four(const uint8_t *from, int16_t *to)
{
    mve_pred16_t four = vctp16q(4);
    vstrhq_p_u16((uint16_t *)to, vldrbq_z_u16(from, four), four);
}

/* Eight values, in two fours of which the second lies `apart` bytes behind the first. */
static inline int16x8_t load_fours(const int16_t *from, uint64x2_t apart)
{
    const int64_t *base = (const int64_t *)(const void *)from;
    return vreinterpretq_s16_s64(vldrdq_gather_offset_s64(base, apart));
}

/* Eight products of a filter and a position are added to their sum by one instruction. */
static void OWN_FUNCTION dot(const int16_t *patch, const int8_t *filter0, const int8_t *filter1,
                             int32_t fours, int32_t sums[4])
{
    const uint64x2_t apart = vreinterpretq_u64_u32(vsetq_lane_u32(16, vdupq_n_u32(0), 2));
    int32_t s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3];
    for (; fours >= 2; fours -= 2, patch += 16, filter0 += 8, filter1 += 8) {
        int16x8_t first = load_fours(patch, apart), second = load_fours(patch + 4, apart);
        int16x8_t w0 = vldrbq_s16(filter0), w1 = vldrbq_s16(filter1);
        s0 = vmladavaq_s16(s0, w0, first);
        s1 = vmladavaq_s16(s1, w0, second);
        s2 = vmladavaq_s16(s2, w1, first);
        s3 = vmladavaq_s16(s3, w1, second);
    }
    if (fours) {
        mve_pred16_t four = vctp16q(4);
        int16x8_t first = vldrhq_z_s16(patch, four), second = vldrhq_z_s16(patch + 4, four);
        int16x8_t w0 = vldrbq_z_s16(filter0, four), w1 = vldrbq_z_s16(filter1, four);
        s0 = vmladavaq_s16(s0, w0, first);
        s1 = vmladavaq_s16(s1, w0, second);
        s2 = vmladavaq_s16(s2, w1, first);
        s3 = vmladavaq_s16(s3, w1, second);
    }
    sums[0] = s0;
    sums[1] = s1;
    sums[2] = s2;
    sums[3] = s3;
}
#elif defined(__ARM_FEATURE_DSP) && defined(__GNUC__) && !defined(__ARM_BIG_ENDIAN)
/* Two products an instruction: bytes 0 and 2 of a word are widened by one instruction and 1 and 3
 * by another, so values stand in that order. */
typedef uint32_t __attribute__((may_alias)) word;
typedef struct __attribute__((packed, may_alias)) {
    uint32_t value;
} unaligned_word;

static inline int32_t lane(int32_t k) { return (k & 1) << 1 | k >> 1; }

static inline void widen_four(const uint8_t *from, int16_t *to)
{
    uint32_t bytes = ((const unaligned_word *)(const void *)from)->value, even, odd;
    __asm__("uxtb16 %0, %1" : "=r"(even) : "r"(bytes));
    __asm__("uxtb16 %0, %1, ror #8" : "=r"(odd) : "r"(bytes));
    ((word *)(void *)to)[0] = even;
    ((word *)(void *)to)[1] = odd;
}

#define MULTIPLY_ADD(sum, a, b) __asm__("smlad %0, %1, %2, %0" : "+r"(sum) : "r"(a), "r"(b))

static void OWN_FUNCTION dot(const int16_t *patch, const int8_t *filter0, const int8_t *filter1,
                             int32_t fours, int32_t sums[4])
{
    const word *x = (const word *)(const void *)patch, *end = x + 4 * fours;
    const word *w0 = (const word *)(const void *)filter0;
    const word *w1 = (const word *)(const void *)filter1;
    int32_t s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3];
    while (x != end) {
        uint32_t bytes0 = *w0++, bytes1 = *w1++, even0, odd0, even1, odd1;
        __asm__("sxtb16 %0, %1" : "=r"(even0) : "r"(bytes0));
        __asm__("sxtb16 %0, %1, ror #8" : "=r"(odd0) : "r"(bytes0));
        __asm__("sxtb16 %0, %1" : "=r"(even1) : "r"(bytes1));
        __asm__("sxtb16 %0, %1, ror #8" : "=r"(odd1) : "r"(bytes1));
        MULTIPLY_ADD(s0, even0, x[0]);
        MULTIPLY_ADD(s2, even1, x[0]);
        MULTIPLY_ADD(s0, odd0, x[1]);
        MULTIPLY_ADD(s2, odd1, x[1]);
        MULTIPLY_ADD(s1, even0, x[2]);
        MULTIPLY_ADD(s3, even1, x[2]);
        MULTIPLY_ADD(s1, odd0, x[3]);
        MULTIPLY_ADD(s3, odd1, x[3]);
        x += 4;
    }
    sums[0] = s0;
    sums[1] = s1;
    sums[2] = s2;
    sums[3] = s3;
}
#elif defined(__wasm_simd128__)
#include <wasm_simd128.h>

static inline int32_t lane(int32_t k) { return k; }

static inline void widen_four(const uint8_t *from, int16_t *to)
{
    wasm_v128_store64_lane(to, wasm_u16x8_extend_low_u8x16(wasm_v128_load32_zero(from)), 0);
}

/* Eight products of each filter and position; those of two neighbours are added at once. */
#define EIGHT(first, second, a, b)                                                                 \
    {                                                                                              \
        v128_t x0 = first, x1 = second, w0 = a, w1 = b;                                            \
        s0 = wasm_i32x4_add(s0, wasm_i32x4_dot_i16x8(x0, w0));                                     \
        s1 = wasm_i32x4_add(s1, wasm_i32x4_dot_i16x8(x1, w0));                                     \
        s2 = wasm_i32x4_add(s2, wasm_i32x4_dot_i16x8(x0, w1));                                     \
        s3 = wasm_i32x4_add(s3, wasm_i32x4_dot_i16x8(x1, w1));                                     \
    }

static void OWN_FUNCTION dot(const int16_t *patch, const int8_t *filter0, const int8_t *filter1,
                             int32_t fours, int32_t sums[4])
{
    const v128_t none = wasm_i32x4_const(0, 0, 0, 0);
    v128_t s0 = none, s1 = none, s2 = none, s3 = none;
    for (; fours >= 2; fours -= 2, patch += 16, filter0 += 8, filter1 += 8) {
        v128_t four = wasm_v128_load(patch), next = wasm_v128_load(patch + 8);
        EIGHT(wasm_i64x2_shuffle(four, next, 0, 2), wasm_i64x2_shuffle(four, next, 1, 3),
              wasm_i16x8_load8x8(filter0), wasm_i16x8_load8x8(filter1))
    }
    if (fours) {
        v128_t four = wasm_v128_load(patch);
        EIGHT(wasm_i64x2_shuffle(four, none, 0, 2), wasm_i64x2_shuffle(four, none, 1, 2),
              wasm_i16x8_extend_low_i8x16(wasm_v128_load32_zero(filter0)),
              wasm_i16x8_extend_low_i8x16(wasm_v128_load32_zero(filter1)))
    }
    v128_t left = wasm_i32x4_add(wasm_i32x4_shuffle(s0, s1, 0, 4, 1, 5),
                                 wasm_i32x4_shuffle(s0, s1, 2, 6, 3, 7));
    v128_t right = wasm_i32x4_add(wasm_i32x4_shuffle(s2, s3, 0, 4, 1, 5),
                                  wasm_i32x4_shuffle(s2, s3, 2, 6, 3, 7));
    v128_t all = wasm_i32x4_add(wasm_i64x2_shuffle(left, right, 0, 2),
                                wasm_i64x2_shuffle(left, right, 1, 3));
    wasm_v128_store(sums, wasm_i32x4_add(wasm_v128_load(sums), all));
}
#else
static inline int32_t lane(int32_t k) { return k; }

static inline void widen_four(const uint8_t *from, int16_t *to)
{
    to[0] = from[0];
    to[1] = from[1];
    to[2] = from[2];
    to[3] = from[3];
}

/* One weight of each filter, with both positions. */
#define TAP(k)                                                                                    \
    {                                                                                              \
        int32_t a = w0[k], b = w1[k], first = x[k], second = x[4 + k];                             \
        s0 += a * first;                                                                           \
        s1 += a * second;                                                                          \
        s2 += b * first;                                                                           \
        s3 += b * second;                                                                          \
    }

static void OWN_FUNCTION dot(const int16_t *patch, const int8_t *filter0, const int8_t *filter1,
                             int32_t fours, int32_t sums[4])
{
    const int16_t *x = patch, *end = patch + 8 * fours;
    const int8_t *w0 = filter0, *w1 = filter1;
    int32_t s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3];
    for (; x != end; x += 8, w0 += 4, w1 += 4) {
        TAP(0)
        TAP(1)
        TAP(2)
        TAP(3)
    }
    sums[0] = s0;
    sums[1] = s1;
    sums[2] = s2;
    sums[3] = s3;
}
#endif

/* Appends values to a position's part of the patch, behind the first `count`. */
static int32_t widen(const uint8_t *from, int32_t values, int16_t *patch, int32_t count)
{
    int32_t end = count + values;
    if ((count & 3) == 0)
        for (; end - count >= 4; count += 4, from += 4)
            widen_four(from, patch + 2 * count);
    for (; count < end; count++)
        patch[2 * (count & ~3) + lane(count & 3)] = *from++;
    return end;
}

static int32_t repeat(uint8_t value, int32_t values, int16_t *patch, int32_t count)
{
    int32_t end = count + values;
    for (; count < end; count++)
        patch[2 * (count & ~3) + lane(count & 3)] = value;
    return end;
}

static void unroll(const struct convolution *c, const uint8_t *in, int32_t group, int32_t y,
                   int32_t x, int16_t *patch)
{
    int32_t per_group = c->in_channels / c->groups, count = 0;
    int32_t first = x * c->stride_x - c->left;
    int32_t last = first + (c->kernel_width - 1) * c->dilation_x;
    int whole = c->groups == 1 && c->dilation_x == 1 && first >= 0 && last < c->in_width;
    for (int32_t i = 0; i < c->kernel_height; i++) {
        int32_t row = y * c->stride_y - c->top + i * c->dilation_y;
        if (row < 0 || row >= c->in_height) {
            count = repeat(c->outside, c->kernel_width * per_group, patch, count);
            continue;
        }
        const uint8_t *from = in + row * c->in_width * c->in_channels + group * per_group;
        if (whole) {
            count = widen(from + first * c->in_channels, c->kernel_width * per_group, patch, count);
            continue;
        }
        for (int32_t j = 0; j < c->kernel_width; j++) {
            int32_t column = first + j * c->dilation_x;
            if (column < 0 || column >= c->in_width)
                count = repeat(c->outside, per_group, patch, count);
            else
                count = widen(from + column * c->in_channels, per_group, patch, count);
        }
    }
    repeat(0, -count & 3, patch, count);
}

static inline uint8_t join(const struct combination *sum, int32_t y, int32_t x, int32_t channel,
                           uint8_t value, const uint8_t *other, struct rounding rounding)
{
    int32_t second = other[at(sum->in[1], y, x, channel)];
    return weighed(sum, weigh(sum, y, x, channel, value, second), rounding);
}

/* Writes bytes to `out`, or if that is 0 the logits. Where there is a `sum`, each byte is added to
 * that of `other` before it is written, which may be `out`. */
static void convolve(const struct convolution *c, const uint8_t *in, uint8_t *out, float *logits,
                     int16_t *patch, const struct combination *sum, const uint8_t *other)
{
    struct rounding rounding = rounding_at(c->zero);
    struct rounding of_sum = rounding_at(sum ? sum->zero : 0);
    int32_t per_group = c->out_channels / c->groups;
    int32_t total = c->out_height * c->out_width * c->pool_height * c->pool_width;
    for (int32_t group = 0; group < c->groups; group++) {
        struct position p = {0, 0, 0, 0};
        for (int32_t n = 0; n < total; n += 2) {
            int32_t pair = total - n < 2 ? 1 : 2, y[2], x[2], places[2], is_first[2];
            const int32_t *bias[2];
            for (int32_t q = 0; q < 2; q++) { /* a last one alone is unrolled twice */
                y[q] = p.row * c->pool_stride_y + p.pool_row;
                x[q] = p.column * c->pool_stride_x + p.pool_column;
                unroll(c, in, group, y[q], x[q], patch + 4 * q);
                bias[q] = bias_at(c, y[q], x[q]);
                places[q] = (p.row * c->out_width + p.column) * c->out_channels;
                is_first[q] = p.pool_row == 0 && p.pool_column == 0;
                if (q < pair - 1 || n + 2 < total)
                    advance(c, &p);
            }
            for (int32_t o = group * per_group; o < (group + 1) * per_group; o += 2) {
                int32_t next = o + 1 < (group + 1) * per_group ? o + 1 : o;
                int32_t sums[4] = {bias[0][o], bias[1][o], bias[0][next], bias[1][next]};
                dot(patch, c->weight + o * 4 * c->fours, c->weight + next * 4 * c->fours, c->fours,
                    sums);
                for (int32_t q = 0; q < pair; q++) {
                    if (!out) {
                        logits[places[q] + o] = (float)sums[q] * c->scale[o];
                        logits[places[q] + next] = (float)sums[2 + q] * c->scale[next];
                        continue;
                    }
                    uint8_t first = requantize(sums[q], c->scale[o], rounding);
                    uint8_t second = requantize(sums[2 + q], c->scale[next], rounding);
                    if (c->table) {
                        first = c->table[first];
                        second = c->table[second];
                    }
                    if (sum) { /* both before either is written: `next` may be `o` */
                        first = join(sum, y[q], x[q], o, first, other, of_sum);
                        second = join(sum, y[q], x[q], next, second, other, of_sum);
                    }
                    put(out + places[q] + o, first, is_first[q]);
                    put(out + places[q] + next, second, is_first[q]);
                }
            }
        }
    }
}
