/* Bytes are the values of a map: value = scale * (byte - zero point). Maps are height x width x
 * channels. Sums are 32 bits wide; each is rounded to a byte by `requantize`, with the same bits on
 * every machine whose float is IEEE 754 single precision. */

#if defined(FLT_EVAL_METHOD) && (FLT_EVAL_METHOD < 0 || FLT_EVAL_METHOD == 1 || FLT_EVAL_METHOD == 2)
#error "float is computed in a wider type here; on x86 compile with -msse2 -mfpmath=sse"
#endif
#if defined(__FAST_MATH__)
#error "-ffast-math changes the results; compile without it"
#endif

struct rounding {
    int32_t zero;
    float low, high; /* of 0 and 255 */
};

static struct rounding rounding_at(int32_t zero)
{
    struct rounding r;
    r.zero = zero;
    r.low = (float)-zero;
    r.high = (float)(255 - zero);
    return r;
}

/* Rounds half to even: 12582912 is 1.5 * 2^23, so adding it leaves no place behind the point. */
static inline uint8_t requantize(int32_t sum, float scale, struct rounding r)
{
    union {
        float value;
        int32_t bits;
    } shifted;
    float scaled = (float)sum * scale;
    scaled = scaled < r.low ? r.low : scaled;
    scaled = scaled > r.high ? r.high : scaled;
    shifted.value = scaled + 12582912.0f;
    return (uint8_t)(shifted.bits - 0x4B400000 + r.zero);
}
