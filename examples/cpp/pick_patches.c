/* The same from C: one scale, and what an error looks like. */
#include <ps3/c_api.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HEIGHT = 1080, WIDTH = 1920, GRID = 54, PATCH = 14, COUNT = 85 };

int main(void) {
  char message[512];
  const float half[3] = {0.5f, 0.5f, 0.5f};
  const ps3_scale scale = {3780, 756, PATCH};
  float prob[27 * 27] = {0};
  uint8_t taken[GRID * GRID] = {0};
  int32_t ids[COUNT];
  ps3_frame frame;
  uint8_t* pixels = malloc((size_t)HEIGHT * WIDTH * 3 / 2);
  float* patches = malloc(sizeof(float) * COUNT * 3 * PATCH * PATCH);
  if (pixels == NULL || patches == NULL) return 1;

  memset(pixels, 128, (size_t)HEIGHT * WIDTH * 3 / 2); /* NV12: gray */
  memset(&frame, 0, sizeof frame);
  frame.format = PS3_NV12;
  frame.height = HEIGHT;
  frame.width = WIDTH;
  frame.plane[0] = pixels;
  frame.plane[1] = pixels + (size_t)HEIGHT * WIDTH;
  frame.stride_bytes[0] = frame.stride_bytes[1] = WIDTH;
  frame.size_bytes[0] = (size_t)HEIGHT * WIDTH;
  frame.size_bytes[1] = (size_t)HEIGHT * WIDTH / 2;
  frame.matrix = PS3_BT709;
  prob[13 * 27 + 20] = 0.9f;

  if (ps3_select(prob, 27, 27, GRID, GRID, taken, ids, COUNT, message, sizeof message) != PS3_OK ||
      ps3_gather(&frame, &scale, ids, COUNT, half, half, patches, 0, message, sizeof message) != PS3_OK) {
    fprintf(stderr, "%s\n", message);
    return 1;
  }
  printf("ps3 %s picked %d patches, %d and %d among them; a pixel is %.4f\n", ps3_version(), COUNT, (int)ids[81], (int)ids[84], patches[0]);

  ids[3] = 5000;
  if (ps3_gather(&frame, &scale, ids, COUNT, half, half, patches, 0, message, sizeof message) != PS3_OUT_OF_RANGE) return 1;
  printf("%s\n", message);
  free(patches);
  free(pixels);
  return 0;
}
