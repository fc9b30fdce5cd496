/* The interrupt controller, for the tests that look at it. */
#ifndef ARMVM_GIC_H
#define ARMVM_GIC_H

#include "uefi.h"

typedef struct {
    const char *version; /* "v2", "v3", or 0: not described */
    u64 distributor, distributor_size;
    u64 redistributor, redistributor_size; /* v3 */
    u64 cpu_interface;                     /* v2 */
} gic_description;

/* By the device tree, else by the MADT, whose version field is handed on (0: not by the MADT). */
gic_description describe_gic(u32 *madt_version);
int gic_is_v3(const gic_description *);

/* ICC_SRE_EL1 and ICC_HPPIR1_EL1; false where the CPU has no such registers, or they are switched off. */
int gic_system_registers(u64 *sre);
int gic_highest_pending(u64 *hppir);

#endif
