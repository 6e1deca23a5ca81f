/* {{ name }}: how unlike an image is those that it was trained on. Made by halfmeg; any change is lost. */
#ifndef {{ macro }}_UNFAMILIAR_H
#define {{ macro }}_UNFAMILIAR_H

#include "{{ name }}.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Images whose score is above this are unfamiliar: {{ "%.1f" | format(100 * unfamiliar.share) }}% of {{ "{:,}".format(unfamiliar.n) }} validation images are.
 * Many images of other things are not caught. */
#define {{ macro }}_UNFAMILIAR {{ unfamiliar.threshold }}

/* Returns the score of an image, from it and the logits that {{ name }}_classify wrote: the energy of the
 * logits, and how far light, contrast, colour and edges are from the training images', each in
 * standard deviations. Needs exp, log and sqrt of the C library (-lm). */
double {{ name }}_unfamiliarity(const uint8_t image[{{ macro }}_IMAGE_BYTES],
    const float logits[{{ macro }}_CLASSES]);

#ifdef __cplusplus
}
#endif

#endif
