/* {{ name }}: classes of an image in 8-bit integers. Made by halfmeg; any change is lost. */
#include "{{ name }}.h"

#include <float.h>

/* A product and a sum must stay two roundings. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=off")
#else
#pragma STDC FP_CONTRACT OFF
#endif

#if defined(__GNUC__)
#define ALIGNED __attribute__((aligned(4)))
#else
#define ALIGNED
#endif

/* A constant that clang folds into the code of one build alone would part the builds' data. */
#if defined(__wasm__)
#define KEPT __attribute__((used))
#else
#define KEPT
#endif

{{ kernels }}
{{ constants }}
{{ structures }}
/* As 16-bit values, since patches are; bytes may be seen through any pointer to bytes. */
static union {
    int16_t values[{{ arena_bytes }} / 2];
    uint32_t alignment;
} memory;

/* Does not compile where memory is not what was stated before the network was trained. */
typedef char arena_is_as_stated[sizeof memory == {{ macro }}_ARENA_BYTES ? 1 : -1];
typedef char constants_are_as_stated[({{ sizes }}) == {{ macro }}_CONSTANT_BYTES ? 1 : -1];

const char *const {{ name }}_labels[{{ macro }}_CLASSES] = {
{% for label in classes %}
    {{ label }},
{% endfor %}
};

int {{ name }}_classify(const uint8_t image[{{ macro }}_IMAGE_BYTES],
    float logits[{{ macro }}_CLASSES])
{
    uint8_t *const arena = (uint8_t *)memory.values;
    int best = 0;
    (void)arena; /* a single layer needs none */
{% for call in calls %}
    {{ call }}
{% endfor %}
{% if output %}
    for (int i = 0; i < {{ macro }}_CLASSES; i++)
        logits[i] = (float)(arena[{{ output.offset }} + i] - {{ output.zero }}) * {{ output.scale }};
{% endif %}
    for (int i = 1; i < {{ macro }}_CLASSES; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

void {{ name }}_probabilities(const float logits[{{ macro }}_CLASSES],
    uint16_t probabilities[{{ macro }}_CLASSES])
{
    float largest = logits[0];
    uint32_t total = 0;
    for (int i = 1; i < {{ macro }}_CLASSES; i++)
        largest = logits[i] > largest ? logits[i] : largest;
    for (int i = 0; i < {{ macro }}_CLASSES; i++) {
        float step = (largest - logits[i]) * {{ probability_scale }} + 0.5f;
        probabilities[i] = step < 255.0f ? exponentials[(int)step] : 0;
        total += probabilities[i];
    }
    for (int i = 0; i < {{ macro }}_CLASSES; i++)
        probabilities[i] = (uint16_t)((probabilities[i] * UINT32_C(65535) + total / 2) / total);
}
