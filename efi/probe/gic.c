/* The test "gic": the interrupt controller as it is described, and what its registers say. */
#include "arch.h"
#include "gic.h"
#include "probe.h"

#define TYPER 0x4
#define PIDR2_V2 0xfe8
#define PIDR2_V3 0xffe8
#define ONE_PAGE 0x1000
#define V3_DISTRIBUTOR_SIZE 0x10000

/* ACPI 6.5, section 5.2.12 */
#define MADT_ENTRIES 44
#define MADT_GICC 11
#define MADT_GICD 12
#define MADT_GICR 14

static gic_description describe_by_tree(void) {
    static const char *const names[] = {
        "arm,gic-v3",          "arm,cortex-a15-gic", "arm,gic-400",        "arm,cortex-a9-gic",
        "arm,cortex-a7-gic",   "arm,pl390",          "arm,eb11mp-gic",     "arm,arm11mp-gic",
        "arm,tc11mp-gic",      "qcom,msm-qgic2",     0,
    };
    gic_description found = {0, 0, 0, 0, 0, 0};
    fdt_node node;
    if (!fdt_find(names, &node)) return found;
    found.version = node.compatible == names[0] ? "v3" : "v2";
    if (node.count > 0) {
        found.distributor = node.regions[0].address;
        found.distributor_size = node.regions[0].size;
    }
    if (node.count > 1 && node.compatible == names[0]) {
        found.redistributor = node.regions[1].address;
        found.redistributor_size = node.regions[1].size;
    } else if (node.count > 1) {
        found.cpu_interface = node.regions[1].address;
    }
    return found;
}

static void take_entry(gic_description *found, const u8 *at, u8 length, u32 *version) {
    if (at[0] == MADT_GICD && length >= 24) {
        found->distributor = read_le64(at + 8);
        *version = at[20];
    }
    if (at[0] == MADT_GICR && length >= 16 && !found->redistributor_size) {
        found->redistributor = read_le64(at + 4);
        found->redistributor_size = read_le32(at + 12);
    }
    if (at[0] == MADT_GICC && length >= 40 && !found->cpu_interface) found->cpu_interface = read_le64(at + 32);
    if (at[0] == MADT_GICC && length >= 68 && !found->redistributor) found->redistributor = read_le64(at + 60);
}

static gic_description describe_by_madt(u32 *version) {
    gic_description found = {0, 0, 0, 0, 0, 0};
    u32 length, at = MADT_ENTRIES;
    const u8 *madt = acpi_find("APIC", &length);
    if (!madt) return found;
    while (length >= at + 2 && madt[at + 1] >= 2 && madt[at + 1] <= length - at) {
        take_entry(&found, madt + at, madt[at + 1], version);
        at += madt[at + 1];
    }
    if (!found.distributor) return found;
    if (!*version) *version = found.redistributor ? 3 : 2; /* as before ACPI 5.1 */
    found.version = *version >= 3 ? "v3" : "v2";
    found.distributor_size = *version >= 3 ? V3_DISTRIBUTOR_SIZE : ONE_PAGE;
    if (found.redistributor && !found.redistributor_size) found.redistributor_size = 0x20000;
    return found;
}

gic_description describe_gic(u32 *madt_version) {
    *madt_version = 0;
    gic_description found = describe_by_tree();
    return found.version ? found : describe_by_madt(madt_version);
}

int gic_is_v3(const gic_description *gic) { return gic->version && gic->version[1] == '3'; }

/* A register of the distributor, if it reaches that far; whether reading it faulted goes into the record too. */
static int put_word(const char *key, const gic_description *gic, u64 offset, u32 *value, int *failed) {
    if (gic->distributor_size < offset + 4) return 0;
    if (!peek32(gic->distributor + offset, value)) {
        *failed = 1;
        return 0;
    }
    put_hex(key, *value);
    return 1;
}

#ifdef __aarch64__

static void read_sre(void *value) { *(u64 *)value = READ_REGISTER("s3_0_c12_c12_5"); }

static void read_hppir1(void *value) { *(u64 *)value = READ_REGISTER("s3_0_c12_c12_2"); }

int gic_system_registers(u64 *sre) {
    fault ignored;
    return !catch_fault(read_sre, sre, &ignored);
}

int gic_highest_pending(u64 *hppir) {
    u64 sre;
    fault ignored;
    return gic_system_registers(&sre) && (sre & 1) && !catch_fault(read_hppir1, hppir, &ignored);
}

#else

/* ID_PFR1.GIC says whether these registers are there. */
int gic_system_registers(u64 *sre) {
    if (!(READ_REGISTER("0, %0, c0, c1, 1") >> 28)) return 0;
    *sre = READ_REGISTER("0, %0, c12, c12, 5");
    return 1;
}

int gic_highest_pending(u64 *hppir) {
    u64 sre;
    if (!gic_system_registers(&sre) || !(sre & 1)) return 0;
    *hppir = READ_REGISTER("0, %0, c12, c12, 2");
    return 1;
}

#endif

test_result test_gic(void) {
    u32 madt_version;
    gic_description gic = describe_gic(&madt_version);
    u64 sre;
    u32 word;
    int failed = 0;
    record_begin("gic");
    if (gic.version)
        put_text("description", gic.version);
    else
        put_null("description");
    if (madt_version) put_number("madt_version", madt_version);
    if (gic.distributor) {
        put_hex("distributor", gic.distributor);
        if (gic.redistributor) put_hex("redistributor", gic.redistributor);
        if (gic.cpu_interface) put_hex("cpu_interface", gic.cpu_interface);
        put_word("typer", &gic, TYPER, &word, &failed);
        if (put_word("pidr2", &gic, gic_is_v3(&gic) ? PIDR2_V3 : PIDR2_V2, &word, &failed))
            put_number("arch", word >> 4 & 15);
    }
    if (gic_system_registers(&sre)) put_hex("icc_sre", sre);
    put_bool("fault", failed);
    record_end();
    return gic.version ? DONE : SKIPPED;
}
