// libcudart for a device that does nothing: memory is host memory, copies are real, kernels are counted, not run.
//
// NULL_CUDA_CAPABILITY (80, 90, 100) and NULL_CUDA_DEVICES (a number) say what it claims to be.
#include "counters.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef cudaError_t Status;

long null_launches, null_blas, null_copies, null_memsets, null_graph_launches, null_waits, null_to_device;
long null_unpinned, null_to_host, null_outside_capture, null_allocations;

static int capability = 90, num_devices = 1;
static __thread int current_device;
static int is_capturing;
static cudaStream_t captured_stream;
static const size_t total_memory = 80ull << 30;

__attribute__((constructor)) static void read_environment(void) {
    const char *capability_text = getenv("NULL_CUDA_CAPABILITY"), *devices_text = getenv("NULL_CUDA_DEVICES");
    if (capability_text) capability = atoi(capability_text);
    if (devices_text) num_devices = atoi(devices_text);
}

static void refuse_in_capture(const char *what) {
    if (!is_capturing) return;
    null_outside_capture++;
    fprintf(stderr, "null CUDA: %s during a capture\n", what);
}

static void wait_for(const char *what) {
    null_waits++;
    refuse_in_capture(what);
}

static void *new_handle(void) {
    static long last = 0x1000;
    return (void *)(last += 16);
}

// Devices

Status cudaGetDeviceCount(int *n) { *n = num_devices; return 0; }
Status cudaGetDevice(int *device) { *device = current_device; return 0; }
Status cudaSetDevice(int device) { current_device = device; return 0; }
Status cudaDriverGetVersion(int *version) { *version = CUDART_VERSION; return 0; }
Status cudaRuntimeGetVersion(int *version) { *version = CUDART_VERSION; return 0; }
Status cudaGetLastError(void) { return 0; }
Status cudaPeekAtLastError(void) { return 0; }
Status cudaDeviceCanAccessPeer(int *can, int a, int b) { *can = 0; return 0; }
Status cudaDeviceSynchronize(void) { wait_for("cudaDeviceSynchronize"); return 0; }

Status cudaDeviceGetPCIBusId(char *text, int size, int device) {
    snprintf(text, size, "0000:00:%02x.0", device);
    return 0;
}

Status cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return 0;
}

Status cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "Null device");
    p->major = capability / 10;
    p->minor = capability % 10;
    p->totalGlobalMem = total_memory;
    p->warpSize = 32;
    p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 2147483647;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->multiProcessorCount = 132;  // here and below: an H100
    p->maxThreadsPerMultiProcessor = 2048;
    p->maxBlocksPerMultiProcessor = 32;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->sharedMemPerBlock = 49152;
    p->sharedMemPerMultiprocessor = 233472;
    p->sharedMemPerBlockOptin = 232448;
    p->l2CacheSize = 50 << 20;
    p->textureAlignment = 512;
    p->concurrentKernels = p->unifiedAddressing = 1;
    return 0;
}

Status cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor: *value = capability / 10; break;
        case cudaDevAttrComputeCapabilityMinor: *value = capability % 10; break;
        case cudaDevAttrMultiProcessorCount: *value = 132; break;
        case cudaDevAttrWarpSize: *value = 32; break;
        case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 233472; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
        case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
        case cudaDevAttrMaxGridDimY:
        case cudaDevAttrMaxGridDimZ: *value = 65535; break;
        case cudaDevAttrL2CacheSize: *value = 50 << 20; break;
        default: *value = 0;
    }
    return 0;
}

// Streams and events: all work is done when it is asked for.

Status cudaStreamCreate(cudaStream_t *s) { *s = new_handle(); return 0; }
Status cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) { *s = new_handle(); return 0; }
Status cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int priority) { *s = new_handle(); return 0; }
Status cudaStreamDestroy(cudaStream_t s) { return 0; }
Status cudaStreamGetPriority(cudaStream_t s, int *priority) { *priority = 0; return 0; }
Status cudaStreamQuery(cudaStream_t s) { return 0; }
Status cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags) { return 0; }
Status cudaStreamSynchronize(cudaStream_t s) { wait_for("cudaStreamSynchronize"); return 0; }
Status cudaEventCreate(cudaEvent_t *e) { *e = new_handle(); return 0; }
Status cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) { *e = new_handle(); return 0; }
Status cudaEventDestroy(cudaEvent_t e) { return 0; }
Status cudaEventRecord(cudaEvent_t e, cudaStream_t s) { return 0; }
Status cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned flags) { return 0; }
Status cudaEventQuery(cudaEvent_t e) { return 0; }
Status cudaEventSynchronize(cudaEvent_t e) { wait_for("cudaEventSynchronize"); return 0; }
Status cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { *ms = 1; return 0; }

// Memory. Pages are reserved, not touched: a model of 80 GB costs nothing until it is written.

#define MAX_PINNED 65536
static struct { char *start; size_t size; } pinned[MAX_PINNED];
static int num_pinned;

static int is_pinned(const void *pointer) {
    const char *p = pointer;
    for (int i = 0; i < num_pinned; i++)
        if (pinned[i].start && p >= pinned[i].start && p < pinned[i].start + pinned[i].size) return 1;
    return 0;
}

#define MAX_BLOCKS 65536
static struct { void *start; size_t size; } blocks[MAX_BLOCKS];

Status cudaMalloc(void **p, size_t size) {
    int free_block = 0;
    while (free_block < MAX_BLOCKS && blocks[free_block].start) free_block++;
    if (free_block == MAX_BLOCKS) abort();
    null_allocations++;
    if (!size) size = 4096;
    *p = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (*p == MAP_FAILED) return cudaErrorMemoryAllocation;
    blocks[free_block].start = *p;
    blocks[free_block].size = size;
    return 0;
}

Status cudaFree(void *p) {
    for (int i = 0; p && i < MAX_BLOCKS; i++) {
        if (blocks[i].start != p) continue;
        munmap(p, blocks[i].size);
        blocks[i].start = 0;
        break;
    }
    return 0;
}

Status cudaHostAlloc(void **p, size_t size, unsigned flags) {
    if (posix_memalign(p, 4096, size)) return cudaErrorMemoryAllocation;
    if (num_pinned == MAX_PINNED) abort();
    pinned[num_pinned].start = *p;
    pinned[num_pinned++].size = size;
    return 0;
}

Status cudaFreeHost(void *p) {
    for (int i = 0; i < num_pinned; i++)
        if (pinned[i].start == (char *)p) pinned[i].start = 0;
    free(p);
    return 0;
}

Status cudaHostRegister(void *p, size_t size, unsigned flags) { return 0; }
Status cudaHostUnregister(void *p) { return 0; }
Status cudaMemGetInfo(size_t *free_bytes, size_t *total) { *free_bytes = *total = total_memory; return 0; }

Status cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *p) {
    memset(attributes, 0, sizeof *attributes);
    attributes->type = is_pinned(p) ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
    attributes->hostPointer = (void *)p;
    return 0;
}

static Status copy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    if (kind == cudaMemcpyHostToDevice) {
        null_to_device++;
        if (!is_pinned(from)) {
            null_unpinned++;
            refuse_in_capture("copy of unpinned memory");
        }
    } else if (kind == cudaMemcpyDeviceToHost) {
        null_to_host++;
        refuse_in_capture("copy to the host");
    } else {
        null_copies++;
    }
    memmove(to, from, size);
    return 0;
}

Status cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    wait_for("cudaMemcpy");
    return copy(to, from, size, kind);
}

Status cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t s) {
    return copy(to, from, size, kind);
}

Status cudaMemcpyToSymbol(const void *symbol, const void *from, size_t n, size_t offset, enum cudaMemcpyKind kind) {
    return 0;
}

Status cudaGetSymbolAddress(void **p, const void *symbol) { *p = calloc(1, 4096); return 0; }
// Zeros are given back to the system, which hands out zeros again: a cache of 80 GB that is cleared costs nothing.
static void set_bytes(char *start, int value, size_t size) {
    const size_t page = 4096;
    char *whole = (char *)(((size_t)start + page - 1) & ~(page - 1));
    size_t pages = size > 2 * page ? (size - (whole - start)) / page * page : 0;
    if (value || !pages) {
        memset(start, value, size);
        return;
    }
    memset(start, 0, whole - start);
    madvise(whole, pages, MADV_DONTNEED);
    memset(whole + pages, 0, start + size - (whole + pages));
}

Status cudaMemset(void *p, int value, size_t size) {
    null_memsets++;
    set_bytes(p, value, size);
    return 0;
}

Status cudaMemsetAsync(void *p, int value, size_t size, cudaStream_t s) { return cudaMemset(p, value, size); }

// Kernels

static Status launch(cudaStream_t stream) {
    null_launches++;
    if (is_capturing && stream != captured_stream && null_outside_capture++ < 3)
        fprintf(stderr, "null CUDA: kernel on another stream during a capture (device %d)\n", current_device);
    return 0;
}

Status cudaLaunchKernel(const void *f, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t s) {
    return launch(s);
}

Status __cudaLaunchKernel(void *f, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t s) {
    return launch(s);
}

Status cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *f, void **arguments) {
    return launch(config->stream);
}

Status cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *f) {
    memset(attributes, 0, sizeof *attributes);
    attributes->ptxVersion = attributes->binaryVersion = capability;
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 32;
    return 0;
}

Status cudaFuncSetAttribute(const void *f, enum cudaFuncAttribute attribute, int value) { return 0; }

Status cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int b, size_t s, unsigned g) {
    *n = 2;
    return 0;
}

Status __cudaGetKernel(void **kernel, const void *f) { *kernel = (void *)f; return 0; }
Status cudaKernelSetAttributeForDevice(cudaKernel_t k, enum cudaFuncAttribute a, int v, int d) { return 0; }
Status cudaLibraryUnload(cudaLibrary_t library) { return 0; }
Status cudaLibraryGetKernel(cudaKernel_t *k, cudaLibrary_t l, const char *name) { *k = new_handle(); return 0; }

Status cudaLibraryLoadData(cudaLibrary_t *library, const void *code, enum cudaJitOption *jit, void **jit_values,
                           unsigned num_jit, enum cudaLibraryOption *options, void **values, unsigned num) {
    *library = new_handle();
    return 0;
}

// Graphs

Status cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) {
    *status = is_capturing && s == captured_stream ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return 0;
}

Status cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                cudaGraph_t *graph, const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges,
                                size_t *num_nodes) {
    cudaStreamIsCapturing(s, status);
    if (id) *id = 1;
    if (graph) *graph = (cudaGraph_t)1;
    if (nodes) *nodes = 0;
    if (edges) *edges = 0;
    if (num_nodes) *num_nodes = 0;
    return 0;
}

Status cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode mode) {
    is_capturing = 1;
    captured_stream = s;
    return 0;
}

Status cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph) {
    is_capturing = 0;
    *graph = new_handle();
    return 0;
}

Status cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) { return 0; }
Status cudaGraphInstantiateWithFlags(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long f) { *e = new_handle(); return 0; }
Status cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) { null_graph_launches++; return 0; }
Status cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *nodes, size_t *num_nodes) { *num_nodes = 1; return 0; }
Status cudaGraphDestroy(cudaGraph_t g) { return 0; }
Status cudaGraphExecDestroy(cudaGraphExec_t e) { return 0; }
Status cudaUserObjectCreate(cudaUserObject_t *o, void *p, cudaHostFn_t f, unsigned n, unsigned flags) { *o = new_handle(); return 0; }
Status cudaUserObjectRelease(cudaUserObject_t o, unsigned count) { return 0; }
Status cudaGraphRetainUserObject(cudaGraph_t g, cudaUserObject_t o, unsigned n, unsigned flags) { return 0; }
Status cudaProfilerStart(void) { return 0; }
Status cudaProfilerStop(void) { return 0; }
