/* What the compiler calls on its own, and a freestanding program has to bring. */
#include "uefi.h"

/* volatile keeps the compiler from making these two out of calls to themselves. */
void *memcpy(void *destination, const void *source, usize length) {
    volatile u8 *to = destination;
    const u8 *from = source;
    while (length--) *to++ = *from++;
    return destination;
}

void *memset(void *destination, int value, usize length) {
    volatile u8 *to = destination;
    while (length--) *to++ = (u8)value;
    return destination;
}
