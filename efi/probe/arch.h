/* Registers that differ between the two states (Arm ARM, D19 and G8). */
#ifndef ARMVM_ARCH_H
#define ARMVM_ARCH_H

#include "uefi.h"

#ifdef __aarch64__

#define READ_REGISTER(name)                                      \
    ({                                                           \
        u64 value_;                                              \
        __asm__ volatile("isb\n mrs %0, " name : "=r"(value_)); \
        value_;                                                  \
    })
#define WRITE_REGISTER(name, value) __asm__ volatile("msr " name ", %0\n isb" : : "r"((u64)(value)) : "memory")

static inline u64 read_counter(void) { return READ_REGISTER("cntvct_el0"); }
static inline u32 read_timer_control(void) { return (u32)READ_REGISTER("cntv_ctl_el0"); }
static inline void write_timer_control(u32 value) { WRITE_REGISTER("cntv_ctl_el0", value); }
static inline u64 read_timer_compare(void) { return READ_REGISTER("cntv_cval_el0"); }
static inline void write_timer_compare(u64 value) { WRITE_REGISTER("cntv_cval_el0", value); }
static inline u64 read_affinity(void) { return READ_REGISTER("mpidr_el1"); }

static inline usize mask_interrupts(void) {
    usize before = READ_REGISTER("daif");
    __asm__ volatile("msr daifset, #3" : : : "memory");
    return before;
}

static inline void unmask_interrupts(usize before) { __asm__ volatile("msr daif, %0" : : "r"(before) : "memory"); }

#else

#define READ_REGISTER(place)                                                \
    ({                                                                      \
        u32 value_;                                                         \
        __asm__ volatile("isb\n mrc p15, " place : "=r"(value_) : : "cc"); \
        value_;                                                             \
    })

static inline u64 read_counter(void) {
    u32 low, high;
    __asm__ volatile("isb\n mrrc p15, 1, %0, %1, c14" : "=r"(low), "=r"(high));
    return (u64)high << 32 | low;
}

static inline u32 read_timer_control(void) { return READ_REGISTER("0, %0, c14, c3, 1"); }

static inline void write_timer_control(u32 value) {
    __asm__ volatile("mcr p15, 0, %0, c14, c3, 1\n isb" : : "r"(value) : "memory");
}

static inline u64 read_timer_compare(void) {
    u32 low, high;
    __asm__ volatile("isb\n mrrc p15, 3, %0, %1, c14" : "=r"(low), "=r"(high));
    return (u64)high << 32 | low;
}

static inline void write_timer_compare(u64 value) {
    __asm__ volatile("mcrr p15, 3, %0, %1, c14\n isb" : : "r"((u32)value), "r"((u32)(value >> 32)) : "memory");
}

static inline u64 read_affinity(void) { return READ_REGISTER("0, %0, c0, c0, 5"); }

static inline usize mask_interrupts(void) {
    usize before;
    __asm__ volatile("mrs %0, cpsr\n cpsid if" : "=r"(before) : : "memory");
    return before;
}

static inline void unmask_interrupts(usize before) {
    if (!(before & 0x80)) __asm__ volatile("cpsie i" : : : "memory");
    if (!(before & 0x40)) __asm__ volatile("cpsie f" : : : "memory");
}

#endif

#endif
