/* What the page calls: an image goes to `image`, `classify` writes `logits`. */
#include "{{ name }}.h"

static uint8_t pixels[{{ macro }}_IMAGE_BYTES];
static float outputs[{{ macro }}_CLASSES];

__attribute__((export_name("image"))) uint8_t *image(void) { return pixels; }
__attribute__((export_name("logits"))) float *logits(void) { return outputs; }
__attribute__((export_name("classify"))) int classify(void)
{
    return {{ name }}_classify(pixels, outputs);
}
