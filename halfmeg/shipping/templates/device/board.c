/* Runs a network on a bare emulated board: images come from a file of the host by semihosting,
 * logits and ticks of each image go to files there. */
#include "{{ name }}.h"

typedef void (*handler)(void);

extern uint32_t stack_top[];
extern uint32_t bss_start[], bss_end[];

void reset(void);
static void stop(int reason);
static void fault(void) { stop(1); }

__attribute__((section(".vectors"), used)) static const handler vectors[16] = {
    (handler)stack_top, reset, fault, fault, fault, fault, fault, fault,
    fault, fault, fault, fault, fault, fault, fault, fault,
};

/* What the compiler may call; written so that it does not call itself. */
void *memset(void *to, int value, unsigned count)
{
    volatile uint8_t *bytes = to;
    while (count--)
        *bytes++ = (uint8_t)value;
    return to;
}

void *memcpy(void *to, const void *from, unsigned count)
{
    volatile uint8_t *bytes = to;
    const uint8_t *source = from;
    while (count--)
        *bytes++ = *source++;
    return to;
}

static int32_t semihost(uint32_t operation, const void *argument)
{
    register uint32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return (int32_t)r0;
}

static void stop(int reason)
{
    uint32_t block[2] = {0x20026, (uint32_t)reason};
    semihost(0x20, block);
    for (;;)
        ;
}

static uint32_t open(const char *path, uint32_t length, uint32_t mode)
{
    uint32_t block[3] = {(uint32_t)path, mode, length};
    int32_t file = semihost(0x01, block);
    if (file < 0)
        stop(2);
    return (uint32_t)file;
}

/* Returns how many bytes were not read or written. */
static int32_t transfer(uint32_t operation, uint32_t file, void *bytes, uint32_t count)
{
    uint32_t block[3] = {file, (uint32_t)bytes, count};
    return semihost(operation, block);
}

#define SYSTICK ((volatile uint32_t *)0xE000E010)

static void run(void)
{
    static uint8_t image[{{ macro }}_IMAGE_BYTES];
    static float logits[{{ macro }}_CLASSES];
    uint32_t images = open("images.bin", 10, 1), results = open("logits.bin", 10, 5);
    uint32_t times = open("ticks.bin", 9, 5);
    SYSTICK[1] = 0xFFFFFF;
    SYSTICK[2] = 0;
    SYSTICK[0] = 5; /* the processor's clock, no interrupt */
    while (SYSTICK[2] == 0) /* it reads 0 before it is first reloaded */
        ;
    while (transfer(0x06, images, image, sizeof image) == 0) {
        uint32_t start = SYSTICK[2], ticks;
        {{ name }}_classify(image, logits);
        ticks = (start - SYSTICK[2]) & 0xFFFFFF;
        if (transfer(0x05, results, logits, sizeof logits) ||
            transfer(0x05, times, &ticks, sizeof ticks))
            stop(3);
    }
}

void reset(void)
{
#if defined(__ARM_FP) || defined(__ARM_FEATURE_MVE)
    *(volatile uint32_t *)0xE000ED88 |= 0xF << 20; /* the floating-point unit */
    __asm__ volatile("dsb\n\tisb");
#endif
    for (uint32_t *word = bss_start; word < bss_end; word++)
        *word = 0;
    run();
    stop(0);
}
