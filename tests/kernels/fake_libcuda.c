/* A stand-in for NVIDIA's driver library, with which Numba compiles, links and launches on a machine
 * without a GPU. Device memory is host memory, copies copy, launches do nothing but are noted.
 *
 *     gcc -shared -fPIC -O1 -o libcuda.so.1 fake_libcuda.c
 *
 * cuda-bindings opens "libcuda.so.1" and asks cuGetProcAddress_v2, all that it looks up by name, for
 * each entry point and the CUDA version whose form of it is meant. Those that `table` lacks become a
 * stub that names itself on stderr and fails: whoever needs one more adds it here. What the driver
 * refuses, such as a block of 2,000 threads, is refused here too.
 *
 * FAKE_CUDA_DEVICES is the number of devices, 1 if unset; they are of compute capability 9.0.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101,
       INVALID_CONTEXT = 201, NOT_FOUND = 500, NOT_SUPPORTED = 801 };
enum { MOST_DEVICES = 8, MOST_CONTEXTS = 64, MOST_LAUNCHES = 1 << 16, MOST_STUBS = 1000 };

typedef uint64_t Pointer;
typedef struct { int device; } Context;
typedef struct { char name[256]; } Kernel;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Context contexts[MOST_DEVICES];
static __thread Context *current[MOST_CONTEXTS];  /* every thread has a stack of contexts */
static __thread int depth;
static int allocations[MOST_DEVICES];

/* What tests read. `Launch` is declared a second time where they do, by ctypes. */

typedef struct {
    char kernel[256];
    unsigned grid[3], block[3], shared_bytes;
    int device;
    void *stream;
} Launch;

static Launch launches[MOST_LAUNCHES];
static int launched;

int fake_launches(void) { return launched; }
const Launch *fake_launch(int number) { return &launches[number]; }
int fake_allocations(int device) { return allocations[device]; }

/* Devices and contexts. */

static int devices(void) {
    const char *wanted = getenv("FAKE_CUDA_DEVICES");
    int count = wanted ? atoi(wanted) : 1;
    return count < MOST_DEVICES ? count : MOST_DEVICES;
}

static Context *top(void) { return depth ? current[depth - 1] : NULL; }

static int init(unsigned flags) {
    for (int device = 0; device < MOST_DEVICES; device++) contexts[device].device = device;
    return SUCCESS;
}
static int driver_version(int *version) { *version = 13000; return SUCCESS; }
static int device_count(int *count) { *count = devices(); return SUCCESS; }
static int device_get(int *device, int ordinal) {
    *device = ordinal;
    return ordinal >= 0 && ordinal < devices() ? SUCCESS : INVALID_DEVICE;
}
static int device_name(char *name, int length, int device) {
    snprintf(name, length, "fake device %d", device);
    return SUCCESS;
}
static int device_uuid(void *uuid, int device) { memset(uuid, device + 1, 16); return SUCCESS; }
static int device_memory(size_t *bytes, int device) { *bytes = 80ull << 30; return SUCCESS; }
static int device_attribute(int *value, int attribute, int device) {
    switch (attribute) {  /* CUdevice_attribute */
        case 1: case 2: case 3: *value = 1024; break;         /* threads of a block, along x and y */
        case 4: *value = 64; break;                           /* and along z */
        case 5: *value = 2147483647; break;                   /* blocks along x */
        case 6: case 7: *value = 65535; break;                /* and along y and z */
        case 8: *value = 49152; break;                        /* shared memory of a block */
        case 10: *value = 32; break;                          /* threads of a warp */
        case 12: *value = 65536; break;                       /* registers of a block */
        case 16: *value = 132; break;                         /* multiprocessors */
        case 39: *value = 2048; break;                        /* threads of a multiprocessor */
        case 75: *value = 9; break;                           /* compute capability */
        case 76: *value = 0; break;
        default: *value = 1;
    }
    return SUCCESS;
}
static int primary_retain(Context **context, int device) {
    *context = &contexts[device];
    return SUCCESS;
}
static int primary_release(int device) { return SUCCESS; }
static int primary_state(int device, unsigned *flags, int *active) {
    *flags = 0, *active = 1;
    return SUCCESS;
}
static int context_current(Context **context) { *context = top(); return SUCCESS; }
static int context_set(Context *context) {
    if (!depth) depth = 1;
    current[depth - 1] = context;
    return SUCCESS;
}
static int context_push(Context *context) {
    if (depth == MOST_CONTEXTS) return INVALID_CONTEXT;
    current[depth++] = context;
    return SUCCESS;
}
static int context_pop(Context **context) {
    if (!depth) return INVALID_CONTEXT;
    *context = current[--depth];
    return SUCCESS;
}
static int context_device(int *device) {
    if (!top()) return INVALID_CONTEXT;
    *device = top()->device;
    return SUCCESS;
}
static int context_device_of(int *device, Context *context) {
    if (!context) return context_device(device);
    *device = context->device;
    return SUCCESS;
}
static int synchronize(void) { return SUCCESS; }

/* Memory. */

static int allocate(Pointer *pointer, size_t bytes) {
    void *memory = NULL;
    if (!top()) return INVALID_CONTEXT;
    if (!bytes) return INVALID_VALUE;
    if (posix_memalign(&memory, 512, bytes)) return OUT_OF_MEMORY;
    pthread_mutex_lock(&lock);
    allocations[top()->device]++;
    pthread_mutex_unlock(&lock);
    *pointer = (Pointer)memory;
    return SUCCESS;
}
static int release(Pointer pointer) { free((void *)pointer); return SUCCESS; }
static int memory_info(size_t *left, size_t *total) {
    *left = *total = 80ull << 30;
    return SUCCESS;
}
static int copy(void *to, const void *from, size_t bytes) {
    memcpy(to, from, bytes);
    return SUCCESS;
}
static int copy_queued(void *to, const void *from, size_t bytes, void *stream) {
    return copy(to, from, bytes);
}
static int fill(Pointer pointer, unsigned char value, size_t count) {
    memset((void *)pointer, value, count);
    return SUCCESS;
}
static int fill_queued(Pointer pointer, unsigned char value, size_t count, void *stream) {
    return fill(pointer, value, count);
}
static int pointer_attribute(void *value, int attribute, Pointer pointer) {
    if (attribute == 1) *(Context **)value = top();        /* CU_POINTER_ATTRIBUTE_CONTEXT */
    else if (attribute == 3) *(Pointer *)value = pointer;  /* ..._DEVICE_POINTER */
    else return NOT_SUPPORTED;
    return SUCCESS;
}

/* Streams and events: all that is queued is done already. */

static int stream_create(void **stream, unsigned flags) { *stream = malloc(1); return SUCCESS; }
static int stream_create_priority(void **stream, unsigned flags, int priority) {
    return stream_create(stream, flags);
}
static int stream_priorities(int *least, int *greatest) {
    *least = *greatest = 0;
    return SUCCESS;
}
static int stream_context(void *stream, Context **context) { *context = top(); return SUCCESS; }
static int stream_flags(void *stream, unsigned *flags) { *flags = 0; return SUCCESS; }
static int stream_priority(void *stream, int *priority) { *priority = 0; return SUCCESS; }
static int stream_capturing(void *stream, int *state) { *state = 0; return SUCCESS; }
static int stream_done(void *stream) { return SUCCESS; }
static int event_create(void **event, unsigned flags) { *event = malloc(1); return SUCCESS; }
static int event_record(void *event, void *stream) { return SUCCESS; }
static int event_done(void *event) { return SUCCESS; }

/* Compiled code, and its launches. */

static int library_load(void **library, const void *code, void *options, void *values, unsigned many,
                        void *more, void *their_values, unsigned how_many) {
    if (memcmp(code, "\177ELF", 4)) return INVALID_VALUE;  /* nvJitLink's machine code */
    *library = malloc(1);
    return SUCCESS;
}
static int library_unload(void *library) { return SUCCESS; }
static int library_kernel(Kernel **kernel, void *library, const char *name) {
    *kernel = calloc(1, sizeof **kernel);
    snprintf((*kernel)->name, sizeof (*kernel)->name, "%s", name);
    return SUCCESS;
}
static int library_module(void **module, void *library) { *module = library; return SUCCESS; }
static int library_global(Pointer *pointer, size_t *bytes, void *library, const char *name) {
    return NOT_FOUND;
}
static int kernel_function(void **function, Kernel *kernel) {
    *function = kernel;
    return SUCCESS;
}
static int kernel_attribute(int *value, int attribute, Kernel *kernel, int device) {
    *value = attribute == 0 ? 1024 : 0;  /* CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK; no memory */
    return SUCCESS;
}
static int kernel_set_attribute(int attribute, int value, Kernel *kernel, int device) {
    return SUCCESS;
}

typedef struct {  /* CUlaunchConfig */
    unsigned grid[3], block[3], shared_bytes;
    void *stream, *attributes;
    unsigned attribute_count;
} Configuration;

static int launch(const Configuration *how, Kernel *kernel, void **arguments, void **extra) {
    const unsigned *grid = how->grid, *block = how->block;
    if (!top()) return INVALID_CONTEXT;
    if (!grid[0] || !grid[1] || !grid[2] || !block[0] || !block[1] || !block[2] ||
        grid[0] > 2147483647u || grid[1] > 65535 || grid[2] > 65535 || block[2] > 64 ||
        (uint64_t)block[0] * block[1] * block[2] > 1024 || how->shared_bytes > 49152) {
        fprintf(stderr, "fake libcuda: %s can't be launched with %u %u %u blocks of %u %u %u\n",
                kernel->name, grid[0], grid[1], grid[2], block[0], block[1], block[2]);
        return INVALID_VALUE;
    }
    pthread_mutex_lock(&lock);
    if (launched < MOST_LAUNCHES) {
        Launch *noted = &launches[launched++];
        memcpy(noted->kernel, kernel->name, sizeof noted->kernel);
        memcpy(noted->grid, grid, sizeof noted->grid);
        memcpy(noted->block, block, sizeof noted->block);
        noted->shared_bytes = how->shared_bytes;
        noted->device = top()->device;
        noted->stream = how->stream;
    }
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}
static int launch_plain(Kernel *kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                        unsigned by, unsigned bz, unsigned shared_bytes, void *stream,
                        void **arguments, void **extra) {
    Configuration how = {{gx, gy, gz}, {bx, by, bz}, shared_bytes, stream, NULL, 0};
    return launch(&how, kernel, arguments, extra);
}

static int error_name(int error, const char **text) { *text = "FAKE_ERROR"; return SUCCESS; }
static int error_text(int error, const char **text) { *text = "see stderr"; return SUCCESS; }

/* Entry points by name, and the CUDA version from which on the name means this form. */

static int resolve(const char *symbol, void **found, int version, uint64_t flags, int *status);

static const struct { const char *symbol; int since; void *function; } table[] = {
    {"cuInit", 0, init},
    {"cuDriverGetVersion", 0, driver_version},
    {"cuGetProcAddress", 0, resolve},
    {"cuGetErrorName", 0, error_name},
    {"cuGetErrorString", 0, error_text},
    {"cuDeviceGetCount", 0, device_count},
    {"cuDeviceGet", 0, device_get},
    {"cuDeviceGetName", 0, device_name},
    {"cuDeviceGetUuid", 0, device_uuid},
    {"cuDeviceTotalMem", 0, device_memory},
    {"cuDeviceGetAttribute", 0, device_attribute},
    {"cuDevicePrimaryCtxRetain", 0, primary_retain},
    {"cuDevicePrimaryCtxRelease", 0, primary_release},
    {"cuDevicePrimaryCtxGetState", 0, primary_state},
    {"cuCtxGetCurrent", 0, context_current},
    {"cuCtxSetCurrent", 0, context_set},
    {"cuCtxPushCurrent", 0, context_push},
    {"cuCtxPopCurrent", 0, context_pop},
    {"cuCtxGetDevice", 0, context_device},
    {"cuCtxGetDevice", 13000, context_device_of},
    {"cuCtxSynchronize", 0, synchronize},
    {"cuCtxGetStreamPriorityRange", 0, stream_priorities},
    {"cuMemAlloc", 0, allocate},
    {"cuMemFree", 0, release},
    {"cuMemGetInfo", 0, memory_info},
    {"cuMemcpyHtoD", 0, copy},
    {"cuMemcpyDtoH", 0, copy},
    {"cuMemcpyDtoD", 0, copy},
    {"cuMemcpyHtoDAsync", 0, copy_queued},
    {"cuMemcpyDtoHAsync", 0, copy_queued},
    {"cuMemcpyDtoDAsync", 0, copy_queued},
    {"cuMemsetD8", 0, fill},
    {"cuMemsetD8Async", 0, fill_queued},
    {"cuPointerGetAttribute", 0, pointer_attribute},
    {"cuStreamCreate", 0, stream_create},
    {"cuStreamCreateWithPriority", 0, stream_create_priority},
    {"cuStreamGetCtx", 0, stream_context},
    {"cuStreamGetFlags", 0, stream_flags},
    {"cuStreamGetPriority", 0, stream_priority},
    {"cuStreamIsCapturing", 0, stream_capturing},
    {"cuStreamSynchronize", 0, stream_done},
    {"cuStreamDestroy", 0, stream_done},
    {"cuEventCreate", 0, event_create},
    {"cuEventRecord", 0, event_record},
    {"cuEventQuery", 0, event_done},
    {"cuEventSynchronize", 0, event_done},
    {"cuEventDestroy", 0, event_done},
    {"cuLibraryLoadData", 0, library_load},
    {"cuLibraryUnload", 0, library_unload},
    {"cuLibraryGetKernel", 0, library_kernel},
    {"cuLibraryGetModule", 0, library_module},
    {"cuLibraryGetGlobal", 0, library_global},
    {"cuKernelGetFunction", 0, kernel_function},
    {"cuKernelGetAttribute", 0, kernel_attribute},
    {"cuKernelSetAttribute", 0, kernel_set_attribute},
    {"cuLaunchKernel", 0, launch_plain},
    {"cuLaunchKernelEx", 0, launch},
};

/* A stub knows its name by its number, so that there is a function for each number. */

static char missing[MOST_STUBS][64];
static int missing_count;

static int stub(int number) {
    fprintf(stderr, "fake libcuda: there is no %s\n", missing[number]);
    return NOT_SUPPORTED;
}
#define TENS(M, n) M(n##0) M(n##1) M(n##2) M(n##3) M(n##4) M(n##5) M(n##6) M(n##7) M(n##8) M(n##9)
#define HUNDREDS(M, n) TENS(M, n##0) TENS(M, n##1) TENS(M, n##2) TENS(M, n##3) TENS(M, n##4) \
                       TENS(M, n##5) TENS(M, n##6) TENS(M, n##7) TENS(M, n##8) TENS(M, n##9)
#define ALL(M) HUNDREDS(M, 10) HUNDREDS(M, 11) HUNDREDS(M, 12) HUNDREDS(M, 13) HUNDREDS(M, 14) \
               HUNDREDS(M, 15) HUNDREDS(M, 16) HUNDREDS(M, 17) HUNDREDS(M, 18) HUNDREDS(M, 19)
#define DEFINE(n) static int stub_##n(void) { return stub(n - 1000); }
#define NAME(n) stub_##n,
ALL(DEFINE)
static int (*const stubs[])(void) = {ALL(NAME)};

static int resolve(const char *symbol, void **found, int version, uint64_t flags, int *status) {
    int best = -1;
    if (status) *status = 0;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (!strcmp(table[i].symbol, symbol) && table[i].since <= version && table[i].since > best) {
            best = table[i].since;
            *found = table[i].function;
        }
    if (best >= 0) return SUCCESS;
    pthread_mutex_lock(&lock);
    int number = missing_count < MOST_STUBS - 1 ? missing_count++ : MOST_STUBS - 1;
    snprintf(missing[number], sizeof missing[number], "%s (of CUDA %d)", symbol, version);
    pthread_mutex_unlock(&lock);
    *found = stubs[number];
    return SUCCESS;
}

int cuGetProcAddress_v2(const char *symbol, void **found, int version, uint64_t flags, int *status) {
    return resolve(symbol, found, version, flags, status);
}
