/*
 * Exceptions become return values: while a body runs under catch_fault the vectors are the probe's own. A synchronous
 * exception or an SError puts the registers back as they were before the body; interrupts are handed to firmware's
 * vectors, so that its timers go on. AArch32 has no such net, and relies on what the ID registers promise.
 */
#include "probe.h"

#define PAGE 4096
#define MOST_FOLLOWED (16u << 20)

#ifdef __aarch64__

typedef struct net {
    u64 registers[12]; /* x19 to x30 */
    u64 stack, daif;
    u64 vectors[8]; /* d8 to d15 */
    u64 esr, far, elr;
    struct net *outer;
} net;

/* Offsets above, for the assembler. */
_Static_assert(__builtin_offsetof(net, stack) == 96 && __builtin_offsetof(net, daif) == 104, "net");
_Static_assert(__builtin_offsetof(net, vectors) == 112 && __builtin_offsetof(net, esr) == 176, "net");

net *armvm_net;
u64 armvm_firmware_vbar;
extern u8 armvm_vectors_el1[], armvm_vectors_el2[];
u64 armvm_enter(net *, void (*body)(void *), void *argument); /* 1 when there was a fault */

__asm__(".text\n"
        ".p2align 2\n"
        ".globl armvm_enter\n"
        "armvm_enter:\n"
        "  stp x19, x20, [x0]\n"
        "  stp x21, x22, [x0, #16]\n"
        "  stp x23, x24, [x0, #32]\n"
        "  stp x25, x26, [x0, #48]\n"
        "  stp x27, x28, [x0, #64]\n"
        "  stp x29, x30, [x0, #80]\n"
        "  mov x9, sp\n"
        "  mrs x10, daif\n"
        "  stp x9, x10, [x0, #96]\n"
        "  stp d8, d9, [x0, #112]\n"
        "  stp d10, d11, [x0, #128]\n"
        "  stp d12, d13, [x0, #144]\n"
        "  stp d14, d15, [x0, #160]\n"
        "  stp x29, x30, [sp, #-16]!\n"
        "  mov x0, x2\n"
        "  blr x1\n"
        "  ldp x29, x30, [sp], #16\n"
        "  mov x0, #0\n"
        "  ret\n"
        /* x0: the net; x1, x2, x3: ESR, FAR, ELR */
        "armvm_recover:\n"
        "  stp x1, x2, [x0, #176]\n"
        "  str x3, [x0, #192]\n"
        "  ldp x19, x20, [x0]\n"
        "  ldp x21, x22, [x0, #16]\n"
        "  ldp x23, x24, [x0, #32]\n"
        "  ldp x25, x26, [x0, #48]\n"
        "  ldp x27, x28, [x0, #64]\n"
        "  ldp x29, x30, [x0, #80]\n"
        "  ldp x9, x10, [x0, #96]\n"
        "  mov sp, x9\n"
        "  ldp d8, d9, [x0, #112]\n"
        "  ldp d10, d11, [x0, #128]\n"
        "  ldp d12, d13, [x0, #144]\n"
        "  ldp d14, d15, [x0, #160]\n"
        "  msr daif, x10\n"
        "  mov x0, #1\n"
        "  ret\n"
        ".macro armvm_fault el\n"
        "  .p2align 7\n"
        "  b armvm_caught_\\el\n"
        ".endm\n"
        /* The interrupt stays pending; it is taken again, through firmware's vectors, while it is unmasked here. */
        ".macro armvm_interrupt el, mask\n"
        "  .p2align 7\n"
        "  stp x16, x17, [sp, #-32]!\n"
        "  mrs x16, elr_\\el\n"
        "  mrs x17, spsr_\\el\n"
        "  stp x16, x17, [sp, #16]\n"
        "  adrp x16, armvm_firmware_vbar\n"
        "  ldr x16, [x16, :lo12:armvm_firmware_vbar]\n"
        "  msr vbar_\\el, x16\n"
        "  isb\n"
        "  msr daifclr, #\\mask\n"
        "  isb\n"
        "  msr daifset, #15\n"
        "  adrp x16, armvm_vectors_\\el\n"
        "  add x16, x16, :lo12:armvm_vectors_\\el\n"
        "  msr vbar_\\el, x16\n"
        "  isb\n"
        "  ldp x16, x17, [sp, #16]\n"
        "  msr elr_\\el, x16\n"
        "  msr spsr_\\el, x17\n"
        "  ldp x16, x17, [sp], #32\n"
        "  eret\n"
        ".endm\n"
        ".macro armvm_table el\n"
        "armvm_caught_\\el:\n"
        "  mrs x1, esr_\\el\n"
        "  mrs x2, far_\\el\n"
        "  mrs x3, elr_\\el\n"
        "  adrp x0, armvm_net\n"
        "  ldr x0, [x0, :lo12:armvm_net]\n"
        "  b armvm_recover\n"
        "  .p2align 11\n"
        "  .globl armvm_vectors_\\el\n"
        "armvm_vectors_\\el:\n"
        "  .rept 4\n"
        "  armvm_fault \\el\n"
        "  armvm_interrupt \\el, 2\n"
        "  armvm_interrupt \\el, 1\n"
        "  armvm_fault \\el\n"
        "  .endr\n"
        "  .p2align 7\n"
        ".endm\n"
        "armvm_table el1\n"
        "armvm_table el2\n");

static u32 exception_level(void) {
    u64 value;
    __asm__ volatile("mrs %0, CurrentEL" : "=r"(value));
    return value >> 2 & 3;
}

static u64 read_vbar(void) {
    u64 value;
    if (exception_level() == 2)
        __asm__ volatile("mrs %0, vbar_el2" : "=r"(value));
    else
        __asm__ volatile("mrs %0, vbar_el1" : "=r"(value));
    return value;
}

static void write_vbar(u64 value) {
    if (exception_level() == 2)
        __asm__ volatile("msr vbar_el2, %0\n isb" : : "r"(value) : "memory");
    else
        __asm__ volatile("msr vbar_el1, %0\n isb" : : "r"(value) : "memory");
}

u64 firmware_vbar(void) { return armvm_net ? armvm_firmware_vbar : read_vbar(); }

/* The vectors push on the stack that is in use: SP_ELx. */
static int can_arm(void) {
    u64 selected;
    u32 level = exception_level();
    __asm__ volatile("mrs %0, SPSel" : "=r"(selected));
    return (selected & 1) && (level == 1 || level == 2);
}

int catch_fault(void (*body)(void *), void *argument, fault *caught) {
    net own;
    if (!can_arm()) {
        body(argument);
        return 0;
    }
    own.outer = armvm_net;
    if (!own.outer) {
        armvm_firmware_vbar = read_vbar();
        armvm_net = &own;
        write_vbar((usize)(exception_level() == 2 ? armvm_vectors_el2 : armvm_vectors_el1));
    }
    armvm_net = &own;
    int failed = (int)armvm_enter(&own, body, argument);
    if (!own.outer) write_vbar(armvm_firmware_vbar);
    armvm_net = own.outer;
    if (failed) *caught = (fault){own.esr, own.far, own.elr};
    return failed;
}

typedef struct {
    u64 address;
    u32 value;
} access;

static void read_word(void *argument) {
    access *asked = argument;
    __asm__ volatile("ldr %w0, [%1]\n dsb sy" : "=r"(asked->value) : "r"(asked->address) : "memory");
}

static void read_byte(void *argument) {
    access *asked = argument;
    __asm__ volatile("ldrb %w0, [%1]\n dsb sy" : "=r"(asked->value) : "r"(asked->address) : "memory");
}

int peek32(u64 address, u32 *value) {
    access asked = {address, 0};
    fault ignored;
    if (catch_fault(read_word, &asked, &ignored)) return 0;
    *value = asked.value;
    return 1;
}

int readable(u64 address, u64 size) {
    fault ignored;
    if (!address || !size || size > MOST_FOLLOWED || address + size < address) return 0;
    for (u64 page = address & ~(u64)(PAGE - 1); page < address + size; page += PAGE) {
        access asked = {page < address ? address : page, 0};
        if (catch_fault(read_byte, &asked, &ignored)) return 0;
    }
    return 1;
}

#else

u64 firmware_vbar(void) { return 0; }

int catch_fault(void (*body)(void *), void *argument, fault *caught) {
    (void)caught;
    body(argument);
    return 0;
}

int peek32(u64 address, u32 *value) {
    if (address >> 32) return 0;
    __asm__ volatile("ldr %0, [%1]\n dsb" : "=r"(*value) : "r"((usize)address) : "memory");
    return 1;
}

int readable(u64 address, u64 size) {
    if (!address || !size || size > MOST_FOLLOWED || (address + size) >> 32) return 0;
    return in_memory_map(address, size);
}

#endif
