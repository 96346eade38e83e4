/* C interface of ps3: for C programs and for languages that call C.
 *
 * Every function returns a code (0 is ok, the others as in ps3/status.h) and never throws. On failure a message of the form
 * "[where] what was got; what is needed. What to do." is written to message, cut to message_bytes and always terminated;
 * message may be NULL. All memory belongs to the caller. Any number of threads may call at once.
 * What the ops compute, and the shapes of arrays, is written in the C++ header of the same name.
 */
#ifndef PS3_C_API_H
#define PS3_C_API_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
  PS3_OK = 0,
  PS3_INVALID_ARGUMENT = 1,
  PS3_OUT_OF_RANGE = 2,
  PS3_UNSUPPORTED = 3,
  PS3_NO_CUDA = 4,
  PS3_OUT_OF_MEMORY = 5,
  PS3_INTERNAL = 6
};

enum { PS3_RGB = 0, PS3_BGR = 1, PS3_RGBA = 2, PS3_BGRA = 3, PS3_GRAY = 4, PS3_NV12 = 5, PS3_YUYV = 6 };
enum { PS3_BT601 = 0, PS3_BT709 = 1 };

typedef struct ps3_frame {
  int format; /* PS3_RGB ... */
  int height;
  int width;
  const uint8_t* plane[2]; /* plane[1]: kNV12 only */
  ptrdiff_t stride_bytes[2];
  size_t size_bytes[2]; /* readable bytes of each plane */
  int matrix;           /* PS3_BT601 or PS3_BT709; read for NV12 and YUYV */
  int full_range;       /* 0 or 1 */
} ps3_frame;

typedef struct ps3_scale {
  int base_px;
  int size_px;
  int patch_px;
} ps3_scale;

typedef struct ps3_position_table {
  const float* values; /* [grid*grid][width] */
  int grid;
  int width;
  const float* residual_f32;    /* [n*n][width] or NULL */
  const uint16_t* residual_f16; /* the same as IEEE half, or NULL */
  int crop;
} ps3_position_table;

typedef struct ps3_score_view {
  const float* features; /* [grid*grid][width] */
  int grid;
  int width;
  const float* weight; /* [width][prompt width] */
  const float* bias;   /* [width] */
} ps3_score_view;

/* "0.1.0" */
const char* ps3_version(void);

/* out: num_ids * 3 * patch_px * patch_px floats. num_threads 0: one per core this process may use. */
int ps3_gather(const ps3_frame* frame, const ps3_scale* scale, const int32_t* ids, size_t num_ids, const float mean[3],
               const float std[3], float* out, int num_threads, char* message, size_t message_bytes);

/* features: grid*grid * width floats, prompt: width, prob: grid*grid. view: NULL for none. */
int ps3_score(const float* features, int grid, int width, const float* prompt, const ps3_score_view* view, float* prob,
              int num_threads, char* message, size_t message_bytes);

/* prob: height*width floats, taken: rows*cols bytes, ids: count. */
int ps3_select(const float* prob, int height, int width, int rows, int cols, uint8_t* taken, int32_t* ids, int count,
               char* message, size_t message_bytes);

/* counts: num_scales - 1, one per high-res scale. */
int ps3_per_look(const int* scales_px, int num_scales, int max_select_num, int* counts, char* message, size_t message_bytes);

/* num_looks, num_tokens: -1 when not given. counts: max_looks * num_scales; *looks: how many looks were planned.
 * PS3_OUT_OF_RANGE with *looks set when they are more than max_looks. */
int ps3_plan_looks(const int* capacity, const int* per_look, int num_scales, int num_looks, int num_tokens, int all,
                   int first_scales, int* counts, int max_looks, int* looks, char* message, size_t message_bytes);

/* out: num_ids * width floats. */
int ps3_position_rows(const ps3_position_table* table, int n, const int32_t* ids, size_t num_ids, float* out, int num_threads,
                      char* message, size_t message_bytes);

/* tokens: num_ids * channels floats, map: channels * rows * cols. */
int ps3_scatter(const float* tokens, int channels, const int32_t* ids, size_t num_ids, int rows, int cols, float* map,
                char* message, size_t message_bytes);

#ifdef __cplusplus
}
#endif

#endif
