// What the null device counts; tests read these through ctypes as null_<name>.
#pragma once

extern long null_launches;         // kernels
extern long null_blas;             // matrix products by cuBLAS or cuBLASLt
extern long null_copies;           // device to device
extern long null_memsets;
extern long null_graph_launches;
extern long null_waits;            // synchronisations of device, stream or event, and copies that wait
extern long null_to_device;        // copies from the host
extern long null_unpinned;         // those of them whose source is not pinned
extern long null_to_host;
extern long null_outside_capture;  // while a graph is captured: kernels on another stream, waits, forbidden copies
extern long null_allocations;
