/* Devices and their drivers, by bus; disks and network interfaces with a proof that they work. */
#include "probe.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    DEVICES_PER_RECORD = 24,
    SECTOR = 512,
    READ_BYTES = 4096,
    READ_TIMEOUT_MS = 10000,
    LINK_TIMEOUT_MS = 5000,
    STATE_TIMEOUT_MS = 1000,
};

/* ---- the lists by bus ---- */

static void put_driver(const char *folder) {
    char text[NAME_SIZE];
    put_text("driver", read_link_name(text, sizeof text, "%s/driver", folder) ? text : NULL);
}

void put_pci_ids(const char *folder) {
    static const char *const fields[] = {"vendor", "device", "class"};
    for (size_t i = 0; i < 3; i++) {
        long long value = read_number("%s/%s", folder, fields[i]);
        if (value >= 0) put_number(fields[i], value);
        else put_null(fields[i]);
    }
}

static void put_pci(const char *folder, const char *name) {
    put_text("slot", name);
    put_pci_ids(folder);
    put_driver(folder);
}

static void put_virtio(const char *folder, const char *name) {
    char parent[NAME_SIZE];
    put_text("name", name);
    put_number("device", read_number("%s/device", folder));
    put_driver(folder);
    char whole[PATH_SIZE];
    bool known = real_path(whole, sizeof whole, "%s", folder) &&
                 read_link_name(parent, sizeof parent, "%s/../subsystem", whole);
    put_text("transport", !known ? NULL : strcmp(parent, "platform") == 0 ? "mmio" : parent);
}

static void put_xen(const char *folder, const char *name) {
    char type[NAME_SIZE];
    put_text("name", name);
    put_text("type", read_text(type, sizeof type, "%s/devtype", folder) ? type : NULL);
    put_driver(folder);
}

/* Platform and AMBA devices, with the node of the device tree that describes them. */
static void put_described(const char *folder, const char *name) {
    static const char tree[] = "/sys/firmware/devicetree/base";
    char node[PATH_SIZE];
    put_text("name", name);
    put_driver(folder);
    bool known = real_path(node, sizeof node, "%s/of_node", folder) && strncmp(node, tree, strlen(tree)) == 0;
    put_text("of_node", known ? node + strlen(tree) : NULL);
}

static const struct bus {
    const char *name;
    void (*put)(const char *folder, const char *name);
} buses[] = {
    {"pci", put_pci}, {"virtio", put_virtio}, {"xen", put_xen}, {"platform", put_described}, {"amba", put_described},
};
enum { BUSES = sizeof buses / sizeof *buses };

static const struct names *devices_on(const struct bus *bus) {
    char folder[PATH_SIZE];
    snprintf(folder, sizeof folder, "/sys/bus/%s/devices", bus->name);
    return list_folder(folder);
}

static size_t records_for(size_t devices) {
    return devices ? (devices + DEVICES_PER_RECORD - 1) / DEVICES_PER_RECORD : 1;
}

static void report_buses(void) {
    size_t parts = 0, part = 0;
    for (const struct bus *bus = buses; bus < buses + BUSES; bus++) parts += records_for(devices_on(bus)->count);
    for (const struct bus *bus = buses; bus < buses + BUSES; bus++) {
        const struct names *devices = devices_on(bus);
        for (size_t record = 0; record < records_for(devices->count); record++) {
            record_begin("devices");
            put_number("part", (long long)part++);
            put_number("parts", (long long)parts);
            list_begin(bus->name);
            size_t first = record * DEVICES_PER_RECORD, end = first + DEVICES_PER_RECORD;
            for (size_t i = first; i < end && i < devices->count; i++) {
                char folder[PATH_SIZE];
                snprintf(folder, sizeof folder, "/sys/bus/%s/devices/%s", bus->name, devices->name[i]);
                object_begin(NULL);
                bus->put(folder, devices->name[i]);
                object_end();
            }
            list_end();
            record_end();
        }
    }
}

/* ---- disks ---- */

struct disk_read {
    int error; /* errno; -1: less than asked for */
    uint8_t digest[32];
};

static void read_disk(const void *question, void *answer) {
    struct disk_read *result = answer;
    char path[PATH_SIZE];
    static uint8_t bytes[READ_BYTES];
    long long deadline = now_ms() + READ_TIMEOUT_MS / 2;
    int descriptor;
    snprintf(path, sizeof path, "/dev/%s", (const char *)question);
    /* The device file may come a moment after the event. */
    while ((descriptor = open(path, O_RDONLY | O_CLOEXEC)) < 0 && errno == ENOENT && now_ms() < deadline) sleep_ms(20);
    if (descriptor < 0) {
        result->error = errno;
        return;
    }
    ssize_t got = 0;
    size_t total = 0;
    while (total < sizeof bytes && (got = read(descriptor, bytes + total, sizeof bytes - total)) > 0) total += (size_t)got;
    result->error = total == sizeof bytes ? 0 : got < 0 ? errno : -1;
    sha256(bytes, total, result->digest);
}

/* virtio and NVMe say it in a file, SCSI in its page 80h (SPC-4 §7.8.10: a head of four bytes). */
static void put_serial(const char *name) {
    char text[NAME_SIZE] = "";
    if (!read_text(text, sizeof text, "/sys/block/%s/serial", name) &&
        !read_text(text, sizeof text, "/sys/block/%s/device/serial", name)) {
        char path[PATH_SIZE];
        snprintf(path, sizeof path, "/sys/block/%s/device/vpd_pg80", name);
        ssize_t got = read_bytes(path, text, sizeof text - 1);
        text[got > 0 ? got : 0] = 0;
        memmove(text, got > 4 ? text + 4 : "", got > 4 ? (size_t)got - 3 : 1);
    }
    put_text("serial", *text ? text : NULL);
}

void put_block(const char *name) {
    struct disk_read result = {0};
    char driver[NAME_SIZE], path[PATH_SIZE];
    long long sectors = read_number("/sys/block/%s/size", name);
    put_text("name", name);
    if (sectors >= 0) put_number("size_bytes", sectors * SECTOR);
    else put_null("size_bytes");
    put_serial(name);
    put_text("driver", read_link_name(driver, sizeof driver, "/sys/block/%s/device/driver", name) ? driver : NULL);
    bool answered = attempt(read_disk, name, &result, sizeof result, READ_TIMEOUT_MS);
    bool good = answered && result.error == 0;
    put_flag("read", good);
    if (good) put_hex("sha256_hex", result.digest, sizeof result.digest);
    else put_text("error", !answered ? "no answer" : result.error < 0 ? "too short" : strerror(result.error));
    put_text("devpath", real_path(path, sizeof path, "/sys/block/%s", name) ? path + strlen("/sys") : NULL);
}

static void report_disks(void) {
    struct names disks = *list_folder("/sys/block");
    for (size_t i = 0; i < disks.count; i++) {
        if (!exists("/sys/block/%s/device", disks.name[i])) continue;
        record_begin("block");
        put_block(disks.name[i]);
        record_end();
    }
}

/* ---- network interfaces ---- */

/* Sets the interface up. The kernel announces a new interface a moment before its name can be found (it emits the event
   inside register_netdevice): until the deadline, "no such device" is no answer yet. */
static bool set_up(const char *name, long long deadline) {
    struct ifreq request = {0};
    int socket_ = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (socket_ < 0) socket_ = socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    bool done = ioctl(socket_, SIOCGIFFLAGS, &request) == 0;
    while (!done && errno == ENODEV && now_ms() < deadline) {
        sleep_ms(5);
        done = ioctl(socket_, SIOCGIFFLAGS, &request) == 0;
    }
    request.ifr_flags |= IFF_UP;
    done = done && ioctl(socket_, SIOCSIFFLAGS, &request) == 0;
    int error = errno;
    if (socket_ >= 0) close(socket_);
    errno = error;
    return done;
}

/* The carrier comes first and the state "up" a moment later, or never: some drivers stay at "unknown". */
static void wait_for_link(const char *name, int wait_ms) {
    char state[NAME_SIZE];
    long long deadline = now_ms() + wait_ms;
    bool carrier = false;
    for (; now_ms() < deadline; sleep_ms(20)) {
        if (!carrier && read_number("/sys/class/net/%s/carrier", name) == 1) {
            carrier = true;
            if (deadline > now_ms() + STATE_TIMEOUT_MS) deadline = now_ms() + STATE_TIMEOUT_MS;
        }
        read_text(state, sizeof state, "/sys/class/net/%s/operstate", name);
        if (carrier && strcmp(state, "up") == 0) return;
    }
}

void put_net(const char *name, int wait_ms) {
    char text[NAME_SIZE], path[PATH_SIZE];
    bool up = set_up(name, now_ms() + wait_ms);
    int error = errno;
    if (up) wait_for_link(name, wait_ms);
    long long carrier = read_number("/sys/class/net/%s/carrier", name);
    put_text("name", name);
    put_text("mac", read_text(text, sizeof text, "/sys/class/net/%s/address", name) ? text : NULL);
    if (carrier >= 0) put_flag("carrier", carrier == 1);
    else put_null("carrier");
    put_text("driver", read_link_name(text, sizeof text, "/sys/class/net/%s/device/driver", name) ? text : NULL);
    put_text("operstate", read_text(text, sizeof text, "/sys/class/net/%s/operstate", name) ? text : NULL);
    if (!up) put_text("error", strerror(error));
    put_text("devpath", real_path(path, sizeof path, "/sys/class/net/%s", name) ? path + strlen("/sys") : NULL);
}

static void report_interfaces(void) {
    struct names interfaces = *list_folder("/sys/class/net");
    int wait_ms = LINK_TIMEOUT_MS; /* for all together */
    for (size_t i = 0; i < interfaces.count; i++) {
        if (!exists("/sys/class/net/%s/device", interfaces.name[i])) continue;
        long long start = now_ms();
        record_begin("net");
        put_net(interfaces.name[i], wait_ms);
        record_end();
        long long spent = now_ms() - start;
        wait_ms = spent < wait_ms ? wait_ms - (int)spent : 0;
    }
}

void report_devices(void) {
    report_buses();
    report_disks();
    report_interfaces();
}
