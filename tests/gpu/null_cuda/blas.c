// cuBLAS and cuBLASLt for the null device: products are counted, not computed. Types are left out: nothing is read.
#include "counters.h"

#include <stdlib.h>
#include <string.h>

#define NOTHING(name) int name() { return 0; }
#define PRODUCT(name) int name() { null_blas++; return 0; }

static char handle[4096];

static int new_descriptor(void **p) {
    *p = calloc(1, 512);
    return 0;
}

int cublasCreate_v2(void **p) { *p = handle; return 0; }
int cublasGetMathMode(void *h, int *mode) { *mode = 0; return 0; }
int cublasGetPointerMode_v2(void *h, int *mode) { *mode = 0; return 0; }
NOTHING(cublasDestroy_v2) NOTHING(cublasSetMathMode) NOTHING(cublasSetPointerMode_v2)
NOTHING(cublasSetSmCountTarget) NOTHING(cublasSetStream_v2) NOTHING(cublasSetWorkspace_v2)

PRODUCT(cublasSgemm_v2) PRODUCT(cublasDgemm_v2) PRODUCT(cublasCgemm_v2) PRODUCT(cublasZgemm_v2)
PRODUCT(cublasSgemmEx) PRODUCT(cublasGemmEx) PRODUCT(cublasGemmStridedBatchedEx)
PRODUCT(cublasSgemmStridedBatched) PRODUCT(cublasDgemmStridedBatched) PRODUCT(cublasCgemmStridedBatched)
PRODUCT(cublasSgemv_v2) PRODUCT(cublasDgemv_v2) PRODUCT(cublasSdot_v2) PRODUCT(cublasDdot_v2) PRODUCT(cublasDotEx)
PRODUCT(cublasLtMatmul)

int cublasLtCreate(void **p) { *p = handle; return 0; }
int cublasLtMatmulDescCreate(void **p, int compute, int scale) { return new_descriptor(p); }
int cublasLtMatmulPreferenceCreate(void **p) { return new_descriptor(p); }
int cublasLtMatrixLayoutCreate(void **p, int type, unsigned long rows, unsigned long columns, long stride) {
    return new_descriptor(p);
}
NOTHING(cublasLtMatmulDescDestroy) NOTHING(cublasLtMatmulDescSetAttribute)
NOTHING(cublasLtMatmulPreferenceDestroy) NOTHING(cublasLtMatmulPreferenceSetAttribute)
NOTHING(cublasLtMatrixLayoutDestroy) NOTHING(cublasLtMatrixLayoutSetAttribute)
NOTHING(cublasLtMatmulAlgoCheck) NOTHING(cublasLtMatmulAlgoInit)
NOTHING(cublasLtMatmulAlgoConfigGetAttribute) NOTHING(cublasLtMatmulAlgoConfigSetAttribute)

int cublasLtMatmulAlgoGetHeuristic(void *lt, void *product, void *a, void *b, void *c, void *d, void *preference,
                                   int wanted, void *results, int *found) {
    memset(results, 0, 128);
    *found = 1;
    return 0;
}
