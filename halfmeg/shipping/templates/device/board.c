/* Runs a network on a bare emulated board: the images stand in the program, logits and ticks of each
 * go out by the serial port. The board is given nothing of the host: a network's C may be anybody's. */
#include "{{ name }}.h"

typedef void (*handler)(void);

extern uint32_t stack_top[];
extern uint32_t bss_start[], bss_end[];

void reset(void);
static void stop(int reason);
static void fault(void) { stop(1); }

#define SYSTICK ((volatile uint32_t *)0xE000E010)
enum { TIMER_BITS = 24 };

static volatile uint32_t wraps; /* of the timer: often one before a network has finished */
static void timer_is_at_0(void) { wraps++; }

__attribute__((section(".vectors"), used)) static const handler vectors[16] = {
    (handler)stack_top, reset, fault, fault, fault, fault, fault, fault,
    fault, fault, fault, fault, fault, fault, fault, timer_is_at_0,
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

__asm__(".section .rodata.images, \"a\"\n"
        "images: .incbin \"images.bin\"\n"
        "images_end: .previous\n");
extern const uint8_t images[], images_end[];

#define UART ((volatile uint32_t *){{ device.uart }})
enum { DATA, STATE, CONTROL, DIVIDER = 4 };

static void send(const void *from, unsigned count)
{
    const uint8_t *bytes = from;
    while (count--) {
        while (UART[STATE] & 1) /* it is still sending the last one */
            ;
        UART[DATA] = *bytes++;
    }
}

/* A reset ends the emulator. Without the last word before it, something has gone wrong. */
static void stop(int reason)
{
    if (reason == 0)
        send("{{ last_word }}", {{ last_word | length }});
    *(volatile uint32_t *)0xE000ED0C = 0x05FA0004;
    for (;;)
        ;
}

/* Ticks since the timer began; its 0 belongs to the next round, as then it has interrupted. */
static uint64_t ticks_now(void)
{
    uint32_t rounds, left;
    do {
        rounds = wraps;
        left = SYSTICK[2];
    } while (rounds != wraps);
    return ((uint64_t)rounds << TIMER_BITS) + (-left & ((1u << TIMER_BITS) - 1));
}

static void run(void)
{
    static uint8_t image[{{ macro }}_IMAGE_BYTES];
    static float logits[{{ macro }}_CLASSES];
    UART[DIVIDER] = 16;
    UART[CONTROL] = 1;
    SYSTICK[1] = (1u << TIMER_BITS) - 1;
    SYSTICK[2] = 0;
    SYSTICK[0] = 7; /* the processor's clock, an interrupt at 0 */
    while (SYSTICK[2] == 0) /* it reads 0 before it is first reloaded */
        ;
    for (const uint8_t *next = images; next < images_end; next += sizeof image) {
        uint64_t start, ticks;
        memcpy(image, next, sizeof image);
        start = ticks_now();
        {{ name }}_classify(image, logits);
        ticks = ticks_now() - start;
        send(logits, sizeof logits);
        send(&ticks, sizeof ticks);
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
