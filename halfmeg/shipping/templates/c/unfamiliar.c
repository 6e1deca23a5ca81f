/* {{ name }}: how unlike an image is those that it was trained on. Made by halfmeg; any change is lost. */
#include "{{ name }}_unfamiliar.h"

#include <math.h>

enum { STATISTICS = 12, PLANES = 3, FULL = 255 * 1000 };

/* Luma and two differences of colour, in thousandths: sums of them are exact in integers. */
static const int16_t planes[PLANES][3] = {{ unfamiliar.planes }};

/* Of the training images' statistics: their mean, and the inverse of their covariance. */
static const double centre[STATISTICS] = {
{{ unfamiliar.centre }}
};
static const double precision[STATISTICS * STATISTICS] = {
{{ unfamiliar.precision }}
};

static int32_t mixed(const int16_t *by, const uint8_t *pixel)
{
{% if image[0] == 1 %}
    return (by[0] + by[1] + by[2]) * pixel[0];
{% else %}
    return by[0] * pixel[0] + by[1] * pixel[1] + by[2] * pixel[2];
{% endif %}
}

static int32_t distance(int32_t one, int32_t other)
{
    return one < other ? other - one : one - other;
}

/* Logarithms of contrasts; the floor keeps a flat image's finite. */
static double contrast(double value)
{
    return log(value / FULL + {{ unfamiliar.floor }});
}

static void measure(const int16_t *by, const uint8_t *image, double *values)
{
    const int32_t height = {{ macro }}_HEIGHT, width = {{ macro }}_WIDTH, row = width * {{ macro }}_CHANNELS;
    int64_t sum = 0, squares = 0, across = 0, down = 0;
    double count = (double)height * width, mean, variance;
    for (int32_t y = 0; y < height; y++)
        for (int32_t x = 0; x < width; x++, image += {{ macro }}_CHANNELS) {
            int32_t value = mixed(by, image);
            sum += value;
            squares += (int64_t)value * value;
            if (x + 1 < width)
                across += distance(value, mixed(by, image + {{ macro }}_CHANNELS));
            if (y + 1 < height)
                down += distance(value, mixed(by, image + row));
        }
    mean = (double)sum / count;
    variance = (double)squares / count - mean * mean;
    values[0] = mean / FULL;
    values[PLANES] = contrast(sqrt(variance > 0 ? variance : 0));
    values[2 * PLANES] = contrast((double)across / ((double)height * (width - 1)));
    values[3 * PLANES] = contrast((double)down / ((double)(height - 1) * width));
}

double {{ name }}_unfamiliarity(const uint8_t image[{{ macro }}_IMAGE_BYTES],
    const float logits[{{ macro }}_CLASSES])
{
    double values[STATISTICS], squared = 0, total = 0, largest = logits[0], energy;
    for (int i = 0; i < PLANES; i++)
        measure(planes[i], image, values + i);
    for (int i = 0; i < STATISTICS; i++)
        for (int j = 0; j < STATISTICS; j++)
            squared += (values[i] - centre[i]) * precision[STATISTICS * i + j] * (values[j] - centre[j]);
    for (int i = 1; i < {{ macro }}_CLASSES; i++)
        largest = logits[i] > largest ? logits[i] : largest;
    for (int i = 0; i < {{ macro }}_CLASSES; i++)
        total += exp(logits[i] - largest);
    energy = -largest - log(total);
    return (energy - {{ unfamiliar.energy_mean }}) / {{ unfamiliar.energy_std }}
        + (log(squared > 1e-6 ? squared : 1e-6) - {{ unfamiliar.distance_mean }}) / {{ unfamiliar.distance_std }};
}
