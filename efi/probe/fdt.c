/* The test "fdt": the flattened device tree (Devicetree Specification v0.4, chapter 5), and finding nodes in it. */
#include "probe.h"

#define MAGIC 0xd00dfeed
#define HEADER 40
#define MOST_SIZE (16u << 20)
#define MOST_DEPTH 32
#define PART 1536

#define BEGIN_NODE 1
#define END_NODE 2
#define PROPERTY 3
#define NOP 4

static const efi_guid fdt_guid = {0xb1b621d5, 0xf19c, 0x41a5, {0x83, 0x0b, 0xd9, 0x15, 0x2c, 0x69, 0xaa, 0xe0}};

typedef struct {
    const u8 *base; /* 0: there is none, or it is not sound */
    u32 size;       /* without the free space after the last block */
    u32 structure, structure_size, strings, strings_size;
} tree;

typedef struct {
    const u8 *data; /* 0: there is no such property */
    u32 size;
} property;

typedef struct {
    property compatible, reg, ranges, bus_range;
    u32 address_cells, size_cells; /* of its children */
} level;

static int inside(u32 offset, u32 size, u32 whole) {
    return offset >= HEADER && offset <= whole && size <= whole - offset;
}

static u32 larger(u32 one, u32 other) { return one > other ? one : other; }

/* Where the memory reservation block ends; 0 when it does not. */
static u32 reservations_end(const u8 *base, u32 offset, u32 whole) {
    static const u8 zero[16];
    for (; inside(offset, 16, whole); offset += 16)
        if (same_bytes(base + offset, zero, 16)) return offset + 16;
    return 0;
}

static tree open_tree(const u8 *base) {
    const tree none = {0, 0, 0, 0, 0, 0};
    tree found;
    if (!readable((usize)base, HEADER) || read_be32(base) != MAGIC) return none;
    u32 whole = read_be32(base + 4), version = read_be32(base + 20), compatible = read_be32(base + 24);
    if (whole < HEADER || whole > MOST_SIZE || version < 17 || compatible > 17) return none;
    if (!readable((usize)base, whole)) return none;
    found.base = base;
    found.structure = read_be32(base + 8);
    found.strings = read_be32(base + 12);
    found.strings_size = read_be32(base + 32);
    found.structure_size = read_be32(base + 36);
    if (found.structure % 4 || !inside(found.structure, found.structure_size, whole)) return none;
    if (!inside(found.strings, found.strings_size, whole)) return none;
    u32 reserved = reservations_end(base, read_be32(base + 16), whole);
    if (!reserved) return none;
    found.size = larger(found.structure + found.structure_size, found.strings + found.strings_size);
    found.size = larger(found.size, reserved);
    return found;
}

static tree current_tree(void) { return open_tree(find_table(&fdt_guid)); }

/* A copy whose header says the size that is sent, as fdt_pack of libfdt makes it; pool memory. */
static u8 *packed(const tree *found) {
    void *copy;
    if (boot->allocate_pool(EFI_LOADER_DATA, found->size, &copy) != EFI_SUCCESS) return 0;
    boot->copy_mem(copy, found->base, found->size);
    for (u32 i = 0; i < 4; i++) ((u8 *)copy)[4 + i] = (u8)(found->size >> (24 - i * 8));
    return copy;
}

static void put_parts(const u8 *data, u32 size) {
    u32 parts = (size + PART - 1) / PART;
    for (u32 part = 0; part < parts; part++) {
        u32 offset = part * PART;
        record_begin("fdt-data");
        put_number("part", part);
        put_number("parts", parts);
        put_base64("data_b64", data + offset, size - offset < PART ? size - offset : PART);
        record_end();
    }
}

test_result test_fdt(void) {
    const u8 *address = find_table(&fdt_guid);
    tree found = open_tree(address);
    record_begin("fdt");
    put_bool("present", address != 0);
    if (address) {
        put_hex("address", (usize)address);
        if (readable((usize)address, HEADER)) put_number("size", read_be32(address + 4));
        put_bool("header_ok", found.base != 0);
        if (found.base) put_number("used", found.size);
    }
    record_end();
    if (!found.base) return DONE;
    u8 *copy = packed(&found);
    if (!copy) return SKIPPED;
    put_parts(copy, found.size);
    media_replace(u"FDT.DTB", copy, found.size);
    boot->free_pool(copy);
    return DONE;
}

/* Whether the name of a property stands at that offset among the strings. */
static int is_name(const tree *in, u32 offset, const char *name) {
    const u8 *strings = in->base + in->strings;
    do {
        if (offset >= in->strings_size || strings[offset++] != (u8)*name) return 0;
    } while (*name++);
    return 1;
}

static u32 cell(property from, u32 otherwise) { return from.size >= 4 ? read_be32(from.data) : otherwise; }

static void take_property(const tree *in, level *node, u32 name, property value) {
    if (is_name(in, name, "compatible")) node->compatible = value;
    if (is_name(in, name, "reg")) node->reg = value;
    if (is_name(in, name, "ranges")) node->ranges = value;
    if (is_name(in, name, "bus-range")) node->bus_range = value;
    if (is_name(in, name, "#address-cells")) node->address_cells = cell(value, 2);
    if (is_name(in, name, "#size-cells")) node->size_cells = cell(value, 1);
}

/* The name in the list of names that the property holds; 0 when none is. */
static const char *match(property compatible, const char *const *names) {
    for (; *names; names++) {
        u32 at = 0;
        while (at < compatible.size) {
            const char *name = *names;
            while (at < compatible.size && *name && compatible.data[at] == (u8)*name) at++, name++;
            if (!*name && at < compatible.size && !compatible.data[at]) return *names;
            while (at < compatible.size && compatible.data[at]) at++;
            at++;
        }
    }
    return 0;
}

static u64 number(const u8 *at, u32 cells) {
    u64 value = 0;
    while (cells--) value = value << 32 | read_be32(at), at += 4;
    return value;
}

/* The address as the CPU sees it: through the ranges of every bus above. False when one does not hand it on. */
static int translate(const level *levels, u32 bus, u64 *address) {
    for (; bus; bus--) {
        const level *node = &levels[bus], *above = &levels[bus - 1];
        u32 child = node->address_cells, parent = above->address_cells, size = node->size_cells;
        u32 row = (child + parent + size) * 4, at = 0;
        if (!node->ranges.data || child > 2 || parent > 2 || size > 2) return 0;
        if (!node->ranges.size) continue;
        for (;; at += row) {
            if (row > node->ranges.size || at > node->ranges.size - row) return 0;
            const u8 *entry = node->ranges.data + at;
            u64 first = number(entry, child), length = number(entry + (child + parent) * 4, size);
            if (*address < first || *address - first >= length) continue;
            *address = *address - first + number(entry + child * 4, parent);
            break;
        }
    }
    return 1;
}

static void describe(const level *levels, u32 depth, fdt_node *node) {
    const level *own = &levels[depth];
    u32 address_cells = depth ? levels[depth - 1].address_cells : 2;
    u32 size_cells = depth ? levels[depth - 1].size_cells : 1;
    u32 row = (address_cells + size_cells) * 4;
    node->count = 0;
    node->first_bus = 0;
    node->last_bus = 255;
    if (own->bus_range.size >= 8) {
        node->first_bus = read_be32(own->bus_range.data) & 255;
        node->last_bus = read_be32(own->bus_range.data + 4) & 255;
    }
    if (!address_cells || address_cells > 2 || size_cells > 2) return;
    for (u32 at = 0; row <= own->reg.size && at <= own->reg.size - row; at += row) {
        if (node->count == COUNT(node->regions)) return;
        fdt_region region = {number(own->reg.data + at, address_cells),
                             number(own->reg.data + at + address_cells * 4, size_cells)};
        if (!depth || !translate(levels, depth - 1, &region.address)) return;
        node->regions[node->count++] = region;
    }
}

int fdt_find(const char *const *compatible, fdt_node *node) {
    static level levels[MOST_DEPTH];
    tree in = current_tree();
    u32 at = 0, depth = 0; /* depth counts the nodes that are open */
    if (!in.base) return 0;
    const u8 *structure = in.base + in.structure;
    while (in.structure_size - at >= 4) {
        u32 token = read_be32(structure + at);
        at += 4;
        if (token == BEGIN_NODE) {
            if (depth == MOST_DEPTH) return 0;
            levels[depth++] = (level){.address_cells = 2, .size_cells = 1};
            while (at < in.structure_size && structure[at]) at++;
            at = (at + 4) & ~3u;
        } else if (token == PROPERTY && depth && in.structure_size - at >= 8) {
            u32 size = read_be32(structure + at), name = read_be32(structure + at + 4);
            if (size > in.structure_size - at - 8) return 0;
            take_property(&in, &levels[depth - 1], name, (property){structure + at + 8, size});
            at = (at + 8 + size + 3) & ~3u;
        } else if (token == END_NODE && depth) {
            node->compatible = match(levels[--depth].compatible, compatible);
            if (node->compatible) {
                describe(levels, depth, node);
                return 1;
            }
        } else if (token != NOP) {
            return 0;
        }
        if (at > in.structure_size) return 0;
    }
    return 0;
}
