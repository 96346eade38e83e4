/* C interface of the ops on a GPU; what is said in ps3/c_api.h and ps3/device.h holds here.
 *
 * Pointers of arrays and planes are GPU memory; workspaces are sized once by ps3_<op>_workspace_bytes. Calls enqueue and return.
 */
#ifndef PS3_C_API_CUDA_H
#define PS3_C_API_CUDA_H

#include "ps3/c_api.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ps3_cuda {
  void* stream; /* a cudaStream_t */
  void* workspace;
  size_t workspace_bytes;
} ps3_cuda;

enum { PS3_MAX_GATHER_SCALES = 8 };

typedef struct ps3_gather_tables {
  const void* data;
  int height;
  int width;
  int num_scales;
  ps3_scale scales[PS3_MAX_GATHER_SCALES];
} ps3_gather_tables;

typedef struct ps3_gather_part {
  ps3_scale scale;
  const int32_t* ids;
  size_t num_ids;
  float* out;        /* num_ids * 3 * patch_px * patch_px, or NULL and out_f16 */
  uint16_t* out_f16; /* the same as IEEE half, or NULL */
} ps3_gather_part;

/* PS3_OK if the functions below can run here, else PS3_NO_CUDA and what is missing. */
int ps3_check_cuda(char* message, size_t message_bytes);

int ps3_gather_workspace_bytes(int height, int width, const ps3_scale* scales, int num_scales, size_t* bytes, char* message,
                               size_t message_bytes);
/* The tables lie in cuda->workspace, which is theirs for as long as they are used. */
int ps3_make_gather_tables(const ps3_cuda* cuda, int height, int width, const ps3_scale* scales, int num_scales,
                           ps3_gather_tables* tables, char* message, size_t message_bytes);
int ps3_gather_cuda(const ps3_cuda* cuda, const ps3_frame* frame, const ps3_gather_tables* tables, const ps3_gather_part* parts,
                    int num_parts, const float mean[3], const float std[3], char* message, size_t message_bytes);

size_t ps3_score_workspace_bytes(int grid, const ps3_score_view* view, int width);
int ps3_score_cuda(const ps3_cuda* cuda, const float* features, int grid, int width, const float* prompt, const ps3_score_view* view,
                   float* prob, char* message, size_t message_bytes);

size_t ps3_select_workspace_bytes(int height, int width, int rows, int cols);
int ps3_select_cuda(const ps3_cuda* cuda, const float* prob, int height, int width, int rows, int cols, uint8_t* taken, int32_t* ids,
                    int count, char* message, size_t message_bytes);

size_t ps3_position_rows_workspace_bytes(const ps3_position_table* table, int n);
int ps3_position_rows_cuda(const ps3_cuda* cuda, const ps3_position_table* table, int n, const int32_t* ids, size_t num_ids, float* out,
                           char* message, size_t message_bytes);

size_t ps3_scatter_workspace_bytes(int rows, int cols);
int ps3_scatter_cuda(const ps3_cuda* cuda, const float* tokens, int channels, const int32_t* ids, size_t num_ids, int rows, int cols,
                     float* map, char* message, size_t message_bytes);

#ifdef __cplusplus
}
#endif

#endif
