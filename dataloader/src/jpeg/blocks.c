/* libjpeg-turbo's decoder with another entropy decoder: coefficients come from a function, all that follows them is the
 * library's own. In C, for the library returns from errors by longjmp, and its structures change with its versions. */
#include <setjmp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>

/* The beginning of what jpegint.h has, as it has been since version 6b of 1998. */
struct jpeg_entropy_decoder {
  void (*start_pass)(j_decompress_ptr);
  boolean (*decode_mcu)(j_decompress_ptr, JBLOCKROW *);
};

/* Fills the next `count` blocks, zeros beforehand; 0 where it can't. */
typedef int next_group(void *from, JBLOCK *blocks, int count);

struct failure {
  struct jpeg_error_mgr base;
  jmp_buf back;
  char *message;
};

struct source {
  next_group *next;
  void *from;
};

static void fail(j_common_ptr jpeg)
{
  struct failure *failure = (struct failure *)jpeg->err;
  jpeg->err->format_message(jpeg, failure->message);
  longjmp(failure->back, 1);
}

static void ignore(j_common_ptr jpeg, int level)
{
  (void)jpeg, (void)level;
}

static boolean decode_group(j_decompress_ptr jpeg, JBLOCKROW *blocks)
{
  struct source *source = jpeg->client_data;
  /* The blocks of a group lie one after another, which decompress_onepass relies on, too. */
  return source->next(source->from, blocks[0], jpeg->blocks_in_MCU) != 0;
}

/* Decodes the picture that `header` (SOI to SOS, and EOI) tells of, of `channels` colours (1: luma, 3: RGB), into `pixels`:
 * `width` x `height`, without gaps. Returns 0, or -1 and why in `message`, of JMSG_LENGTH_MAX (200) bytes. */
int codinet_decode_blocks(const unsigned char *header, size_t length, unsigned width, unsigned height, int channels,
                          next_group *next, void *from, unsigned char *pixels, char *message)
{
  struct jpeg_decompress_struct jpeg;
  struct failure failure;
  struct source source = { next, from };

  jpeg.err = jpeg_std_error(&failure.base);
  failure.base.error_exit = fail;
  failure.base.emit_message = ignore;
  failure.message = message;
  if (setjmp(failure.back)) {
    jpeg_destroy_decompress(&jpeg);
    return -1;
  }
  jpeg_create_decompress(&jpeg);
  jpeg.client_data = &source;
  jpeg_mem_src(&jpeg, header, length);
  jpeg_read_header(&jpeg, TRUE);
  jpeg.out_color_space = channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
  jpeg_start_decompress(&jpeg);
  const char *wrong = NULL;
  if (jpeg.output_width != width || jpeg.output_height != height || jpeg.output_components != channels)
    wrong = "another size than was read";
  else
    jpeg.entropy->decode_mcu = decode_group;
  while (!wrong && jpeg.output_scanline < height) {
    JSAMPROW row = pixels + (size_t)jpeg.output_scanline * width * channels;
    if (jpeg_read_scanlines(&jpeg, &row, 1) == 0)
      wrong = "corrupt data";
  }
  if (wrong)
    strcpy(message, wrong);
  jpeg_destroy_decompress(&jpeg);
  return wrong ? -1 : 0;
}
