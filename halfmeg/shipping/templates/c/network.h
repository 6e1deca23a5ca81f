/* {{ name }}: classes of an image in 8-bit integers. Made by halfmeg; any change is lost. */
#ifndef {{ macro }}_H
#define {{ macro }}_H

#include <limits.h>
#include <stdint.h>

#if INT_MAX < 2147483647
#error "{{ name }} needs an int of 32 bits, which boards of 8 and 16 bits (AVR, MSP430) do not have"
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define {{ macro }}_HEIGHT {{ image[1] }}
#define {{ macro }}_WIDTH {{ image[2] }}
#define {{ macro }}_CHANNELS {{ image[0] }}
#define {{ macro }}_CLASSES {{ classes | length }}
#define {{ macro }}_IMAGE_BYTES ({{ macro }}_HEIGHT * {{ macro }}_WIDTH * {{ macro }}_CHANNELS)

/* Static memory; the image and the logits are the caller's. */
#define {{ macro }}_ARENA_BYTES {{ arena_bytes }}
/* Weights, biases, scales and tables in flash; code is not counted. */
#define {{ macro }}_CONSTANT_BYTES {{ constant_bytes }}

extern const char *const {{ name }}_labels[{{ macro }}_CLASSES];

/* Returns the class of an image and writes its logits. The image is height x width x channels,
 * {{ 'gray' if image[0] == 1 else 'red, green and blue' }} from 0 to 255. Works in one static arena: not for two threads at once. */
int {{ name }}_classify(const uint8_t image[{{ macro }}_IMAGE_BYTES],
    float logits[{{ macro }}_CLASSES]);

/* Writes probabilities in units of 1/65535, from a table: true to about 2 % of up to 50 classes. Of
 * more, the first one's is too high, since what is below 1/2900 of it counts as 0. */
void {{ name }}_probabilities(const float logits[{{ macro }}_CLASSES],
    uint16_t probabilities[{{ macro }}_CLASSES]);

#ifdef __cplusplus
}
#endif

#endif
