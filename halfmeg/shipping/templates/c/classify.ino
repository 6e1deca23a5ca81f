// Reads images of {{ image[1] }}x{{ image[2] }}x{{ image[0] }} bytes from the serial port and answers with the class of each.
#include <{{ name }}{{ "_unfamiliar" if unfamiliar }}.h>

static uint8_t image[{{ macro }}_IMAGE_BYTES];
static float logits[{{ macro }}_CLASSES];

void setup() {
  Serial.begin(115200);
}

void loop() {
  if (Serial.readBytes((char *)image, sizeof image) == sizeof image) {
    unsigned long start = micros();
    int best = {{ name }}_classify(image, logits);
    unsigned long spent = micros() - start;
    Serial.print({{ name }}_labels[best]);
{% if unfamiliar %}
    if ({{ name }}_unfamiliarity(image, logits) > {{ macro }}_UNFAMILIAR)
      Serial.print(" (unfamiliar)");
{% endif %}
    Serial.print(" in microseconds: ");
    Serial.println(spent);
  }
}
