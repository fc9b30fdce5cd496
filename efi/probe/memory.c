/* The test "memory": the UEFI memory map. */
#include "probe.h"

#define PAGE 4096
#define MOST_MAP (1u << 20)
#define MMIO 11
#define MMIO_PORTS 12

/* Section 7.2.3. */
typedef struct {
    u32 type;
    u64 start, virtual_start, pages, attributes;
} descriptor;

typedef struct {
    u8 *data; /* pool memory; 0 when there is no map */
    usize size, key, descriptor_size;
} memory_map;

static memory_map get_map(void) {
    memory_map map = {0, 0, 0, 0};
    u32 version;
    void *data = 0;
    efi_status status = boot->get_memory_map(&map.size, 0, &map.key, &map.descriptor_size, &version);
    if (status != EFI_BUFFER_TOO_SMALL || map.size > MOST_MAP) return (memory_map){0, 0, 0, 0};
    map.size += 4096; /* the allocation itself may split a range */
    if (boot->allocate_pool(EFI_LOADER_DATA, map.size, &data) != EFI_SUCCESS) return (memory_map){0, 0, 0, 0};
    status = boot->get_memory_map(&map.size, data, &map.key, &map.descriptor_size, &version);
    if (status == EFI_SUCCESS && map.descriptor_size >= sizeof(descriptor)) {
        map.data = data;
        return map;
    }
    boot->free_pool(data);
    return (memory_map){0, 0, 0, 0};
}

static usize count_of(const memory_map *map) {
    u32 rest;
    return map->data ? (usize)divide(map->size, (u32)map->descriptor_size, &rest) : 0;
}

static const descriptor *at(const memory_map *map, usize index) {
    return (const descriptor *)(map->data + index * map->descriptor_size);
}

test_result test_memory(void) {
    memory_map map = get_map();
    usize count = count_of(&map);
    record_begin("memory");
    put_hex("key", map.key);
    put_number("descriptor_size", map.descriptor_size);
    put_number("count", count);
    record_end();
    for (usize i = 0; i < count; i++) {
        const descriptor *range = at(&map, i);
        if (i % 8 == 0) {
            record_begin("memory-range");
            begin_array("ranges");
        }
        begin_array(0);
        put_number(0, range->type);
        put_hex(0, range->start);
        put_number(0, range->pages);
        put_hex(0, range->attributes);
        end_array();
        if (i % 8 == 7 || i == count - 1) {
            end_array();
            record_end();
        }
    }
    if (map.data) boot->free_pool(map.data);
    return map.data ? DONE : SKIPPED;
}

int in_memory_map(u64 address, u64 size) {
    memory_map map = get_map();
    usize count = count_of(&map);
    u64 end = address + size;
    /* Neighbouring ranges need not be sorted: each pass takes the range that the address stands in. */
    for (usize passes = 0; passes < count && address < end; passes++) {
        u64 before = address;
        for (usize i = 0; i < count; i++) {
            const descriptor *range = at(&map, i);
            if (range->type == MMIO || range->type == MMIO_PORTS) continue;
            if (address >= range->start && address - range->start < range->pages * PAGE)
                address = range->start + range->pages * PAGE;
        }
        if (address == before) break;
    }
    if (map.data) boot->free_pool(map.data);
    return address >= end;
}
