/* Reads images from standard input, one after another as {{ name }}.h wants them, and prints the
 * class, its probability{{ ", how unfamiliar it is" if unfamiliar }} and all logits of each. */
#include "{{ name }}{{ "_unfamiliar" if unfamiliar }}.h"

#include <stdio.h>

int main(void)
{
    static uint8_t image[{{ macro }}_IMAGE_BYTES];
    float logits[{{ macro }}_CLASSES];
    uint16_t probabilities[{{ macro }}_CLASSES];
    while (fread(image, 1, sizeof image, stdin) == sizeof image) {
        int best = {{ name }}_classify(image, logits);
        {{ name }}_probabilities(logits, probabilities);
        printf("%s\t%.3f", {{ name }}_labels[best], probabilities[best] / 65535.0);
{% if unfamiliar %}
        printf("\t%.6f", {{ name }}_unfamiliarity(image, logits));
{% endif %}
        for (int i = 0; i < {{ macro }}_CLASSES; i++)
            printf("\t%.9g", (double)logits[i]);
        printf("\n");
    }
    return 0;
}
