/* The parts of libjpeg-turbo that the dataloader uses. In C, because the library leaves its functions by longjmp after an
 * error, and because its structures change between versions.
 *
 * Every function that can fail returns 0, or BROKEN or UNSUPPORTED; codinet_jpeg_message then says why. After a failure, an
 * object may only be asked for its message and freed. */
#include <setjmp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include <jerror.h>

enum { BROKEN = 1, UNSUPPORTED = 2 };

enum {
  /* A small progressive file with many scans would take minutes. Encoders write about ten. */
  MOST_SCANS = 100,
  /* Rows that are read in one call. */
  ROWS_PER_CALL = 32,
  OUTPUT_BUFFER_SIZE = 1 << 16
};

/* The beginnings of structures in jpegint.h, which have not changed since version 6b of 1998. */
struct jpeg_entropy_decoder {
  void (*start_pass)(j_decompress_ptr);
  boolean (*decode_mcu)(j_decompress_ptr, JBLOCKROW *);
};
struct jpeg_marker_reader {
  void (*reset_marker_reader)(j_decompress_ptr);
  int (*read_markers)(j_decompress_ptr);
  jpeg_marker_parser_method read_restart_marker;
  boolean saw_SOI;
  boolean saw_SOF;
  int next_restart_num;
  unsigned int discarded_bytes;
};

/* Reads the next MCU: `count` blocks, which are zero before; returns 0 if the data are broken. */
typedef int read_mcu(void *reader, JBLOCK *blocks, int count);

/* Appends `length` bytes to `to`. */
typedef void append(void *to, const unsigned char *bytes, size_t length);

/* A JPEG that is being decoded. */
struct codinet_jpeg {
  struct jpeg_decompress_struct source;
  struct jpeg_compress_struct target; /* transcode writes by it */
  struct jpeg_error_mgr errors;
  struct jpeg_progress_mgr progress;
  struct jpeg_destination_mgr destination;
  jpeg_marker_parser_method read_restart_marker;
  read_mcu *read_mcu;
  void *reader;
  append *append;
  void *append_to;
  JOCTET *output_buffer;
  jmp_buf on_error;
  size_t length; /* of the file */
  int fault;
  char message[JMSG_LENGTH_MAX];
};

/* The header's contents. */
struct codinet_frame {
  unsigned width;
  unsigned height;
  int colour_space; /* a J_COLOR_SPACE */
  int progressive;
  unsigned mcu_width; /* of a minimum coded unit, in pixels: a crop begins at a multiple of it */
  unsigned components;
  unsigned sampling[4][2]; /* each component's factors, horizontal and vertical */
  size_t length;           /* of the header, with the first SOS */
};

static void stop(struct codinet_jpeg *jpeg, int fault, const char *message)
{
  jpeg->fault = fault;
  snprintf(jpeg->message, sizeof jpeg->message, "%s", message);
  longjmp(jpeg->on_error, 1);
}

static void stop_by_library(j_common_ptr common)
{
  char message[JMSG_LENGTH_MAX];
  common->err->format_message(common, message);
  stop(common->client_data, BROKEN, message);
}

/* Whether the picture is whole in spite of a warning. All other warnings mean that a part of it is made up. */
static int is_harmless(const struct jpeg_error_mgr *errors)
{
  int marker = errors->msg_parm.i[1];
  switch (errors->msg_code) {
  case JWRN_ADOBE_XFORM:   /* an unknown colour transform: the usual one is taken */
  case JWRN_JFIF_MAJOR:    /* an unknown revision of JFIF, which does not concern the picture */
  case JWRN_NOT_SEQUENTIAL: /* parameters of progressive scans in another scan, which has no use for them */
    return 1;
  case JWRN_EXTRANEOUS_DATA: /* stray bytes before a marker; before a restart marker they are a part of the picture */
    return marker < JPEG_RST0 || marker > JPEG_RST0 + 7;
  default:
    return 0;
  }
}

/* The library calls it for each warning (level -1) and for what it traces (0 and above). */
static void check_warning(j_common_ptr common, int level)
{
  if (level < 0 && !is_harmless(common->err))
    stop_by_library(common);
}

static void check_scans(j_common_ptr common)
{
  struct codinet_jpeg *jpeg = common->client_data;
  if (common->is_decompressor && jpeg->source.input_scan_number > MOST_SCANS)
    stop(jpeg, BROKEN, "more than 100 scans");
}

/* The library is silent about up to seven bytes that are left of an interval, and counts them to a later one's. */
static boolean read_restart_marker(j_decompress_ptr source)
{
  struct codinet_jpeg *jpeg = source->client_data;
  if (source->marker->discarded_bytes > 0)
    stop(jpeg, BROKEN, "Corrupt JPEG data: extraneous bytes before a restart marker");
  return jpeg->read_restart_marker(source);
}

static int create(struct codinet_jpeg *jpeg, const unsigned char *encoded, size_t length)
{
  jpeg->source.err = jpeg_std_error(&jpeg->errors);
  jpeg->source.client_data = jpeg;
  jpeg->errors.error_exit = stop_by_library;
  jpeg->errors.emit_message = check_warning;
  jpeg->progress.progress_monitor = check_scans;
  if (setjmp(jpeg->on_error))
    return jpeg->fault;
  jpeg_create_decompress(&jpeg->source);
  jpeg->source.progress = &jpeg->progress;
  jpeg->read_restart_marker = jpeg->source.marker->read_restart_marker;
  jpeg->source.marker->read_restart_marker = read_restart_marker;
  jpeg->length = length;
  if (length > 0)
    jpeg_mem_src(&jpeg->source, encoded, length);
  return 0;
}

void codinet_jpeg_free(struct codinet_jpeg *jpeg)
{
  jpeg_destroy_compress(&jpeg->target); /* nothing, where it was not created */
  jpeg_destroy_decompress(&jpeg->source);
  free(jpeg);
}

/* Opens a JPEG, which must outlive the object. NULL: out of memory. */
struct codinet_jpeg *codinet_jpeg_open(const unsigned char *encoded, size_t length)
{
  struct codinet_jpeg *jpeg = calloc(1, sizeof *jpeg);
  if (jpeg != NULL && create(jpeg, encoded, length)) {
    codinet_jpeg_free(jpeg);
    return NULL;
  }
  return jpeg;
}

/* Why the last call failed; it lives as long as the object. */
const char *codinet_jpeg_message(const struct codinet_jpeg *jpeg)
{
  return jpeg->message;
}

/* Refuses what can't be decoded whole, in part, scaled and by a transcoder alike. */
static void check_supported(struct codinet_jpeg *jpeg)
{
  const struct jpeg_decompress_struct *source = &jpeg->source;
  if (source->min_DCT_scaled_size != DCTSIZE) /* of a lossless JPEG: 1 */
    stop(jpeg, UNSUPPORTED, "lossless compression");
  if (source->data_precision != 8)
    stop(jpeg, UNSUPPORTED, "more than 8 bits a channel");
  if (source->jpeg_color_space == JCS_UNKNOWN)
    stop(jpeg, UNSUPPORTED, "neither 1, 3 nor 4 components");
  for (int i = 0; i < source->num_components; i++) {
    const jpeg_component_info *component = &source->comp_info[i];
    if (source->max_h_samp_factor % component->h_samp_factor || source->max_v_samp_factor % component->v_samp_factor)
      stop(jpeg, UNSUPPORTED, "fractional chroma sampling");
  }
}

/* Reads up to the first scan. It has to be called first. */
int codinet_jpeg_read_header(struct codinet_jpeg *jpeg, struct codinet_frame *frame)
{
  struct jpeg_decompress_struct *source = &jpeg->source;
  if (setjmp(jpeg->on_error))
    return jpeg->fault;
  if (source->src == NULL)
    stop(jpeg, BROKEN, "an empty file");
  jpeg_read_header(source, TRUE);
  check_supported(jpeg);
  frame->width = source->image_width;
  frame->height = source->image_height;
  frame->colour_space = source->jpeg_color_space;
  frame->progressive = source->progressive_mode;
  /* As jpeg_crop_scanline aligns. */
  frame->mcu_width = DCTSIZE * (source->num_components == 1 ? 1 : source->max_h_samp_factor);
  frame->length = jpeg->length - source->src->bytes_in_buffer;
  frame->components = source->num_components; /* 4 at most: others have no known colour space */
  for (int i = 0; i < source->num_components; i++) {
    frame->sampling[i][0] = source->comp_info[i].h_samp_factor;
    frame->sampling[i][1] = source->comp_info[i].v_samp_factor;
  }
  return 0;
}

/* Begins to decode, to `channels` colours (1: grey, 3: RGB, 4: CMYK as stored), at a scale of 1/`denominator`. The size of
 * what will be decoded becomes `size`: width, height and bytes of a pixel. */
int codinet_jpeg_start(struct codinet_jpeg *jpeg, int channels, unsigned denominator, unsigned size[3])
{
  struct jpeg_decompress_struct *source = &jpeg->source;
  if (setjmp(jpeg->on_error))
    return jpeg->fault;
  source->out_color_space = channels == 1 ? JCS_GRAYSCALE : channels == 3 ? JCS_RGB : JCS_CMYK;
  source->scale_num = 1;
  source->scale_denom = denominator;
  source->dct_method = JDCT_ISLOW;
  source->do_fancy_upsampling = TRUE;
  jpeg_start_decompress(source);
  size[0] = source->output_width;
  size[1] = source->output_height;
  size[2] = source->output_components;
  return 0;
}

static boolean decode_mcu(j_decompress_ptr source, JBLOCKROW *blocks)
{
  struct codinet_jpeg *jpeg = source->client_data;
  /* The blocks of an MCU lie one after another, which decompress_onepass relies on, too. */
  if (!jpeg->read_mcu(jpeg->reader, blocks[0], source->blocks_in_MCU))
    stop(jpeg, BROKEN, "Corrupt JPEG data in a tile");
  return TRUE;
}

/* Coefficients come from `read` from now on, not from the file. Between start and the first rows of a baseline JPEG. */
void codinet_jpeg_replace_entropy_decoder(struct codinet_jpeg *jpeg, read_mcu *read, void *reader)
{
  jpeg->read_mcu = read;
  jpeg->reader = reader;
  jpeg->source.entropy->decode_mcu = decode_mcu;
}

/* Decodes only the columns from `left`, which moves to where decoding can begin, on; `width` grows by as much. Between
 * start and the first rows. */
int codinet_jpeg_crop(struct codinet_jpeg *jpeg, unsigned *left, unsigned *width)
{
  if (setjmp(jpeg->on_error))
    return jpeg->fault;
  jpeg_crop_scanline(&jpeg->source, left, width);
  return 0;
}

/* Passes over the first `rows` rows. Only the first: see https://github.com/libjpeg-turbo/libjpeg-turbo/issues/915. */
int codinet_jpeg_skip(struct codinet_jpeg *jpeg, unsigned rows)
{
  if (setjmp(jpeg->on_error))
    return jpeg->fault;
  if (jpeg->source.output_scanline != 0 || jpeg_skip_scanlines(&jpeg->source, rows) != rows)
    stop(jpeg, BROKEN, "rows that cannot be passed over");
  return 0;
}

static void read_rows(struct codinet_jpeg *jpeg, unsigned char *pixels, size_t size)
{
  struct jpeg_decompress_struct *source = &jpeg->source;
  size_t row = (size_t)source->output_width * source->output_components;
  size_t rows = size / row;
  while (rows > 0) {
    JSAMPROW next[ROWS_PER_CALL];
    size_t asked = rows < ROWS_PER_CALL ? rows : ROWS_PER_CALL;
    for (size_t i = 0; i < asked; i++)
      next[i] = pixels + i * row;
    size_t done = jpeg_read_scanlines(source, next, asked);
    if (done == 0)
      stop(jpeg, BROKEN, "Corrupt JPEG data");
    pixels += done * row;
    rows -= done;
  }
}

/* Reads as many rows as `size` bytes hold, one after another without gaps, into `pixels`. */
int codinet_jpeg_read(struct codinet_jpeg *jpeg, unsigned char *pixels, size_t size)
{
  if (setjmp(jpeg->on_error))
    return jpeg->fault;
  read_rows(jpeg, pixels, size);
  return 0;
}

/* Reads the file to its end, after the last row. */
int codinet_jpeg_finish(struct codinet_jpeg *jpeg)
{
  if (setjmp(jpeg->on_error))
    return jpeg->fault;
  jpeg_finish_decompress(&jpeg->source);
  return 0;
}

static void start_output(j_compress_ptr target)
{
  struct codinet_jpeg *jpeg = target->client_data;
  jpeg->output_buffer = target->mem->alloc_small((j_common_ptr)target, JPOOL_IMAGE, OUTPUT_BUFFER_SIZE);
  target->dest->next_output_byte = jpeg->output_buffer;
  target->dest->free_in_buffer = OUTPUT_BUFFER_SIZE;
}

static boolean write_output(j_compress_ptr target)
{
  struct codinet_jpeg *jpeg = target->client_data;
  jpeg->append(jpeg->append_to, jpeg->output_buffer, OUTPUT_BUFFER_SIZE);
  target->dest->next_output_byte = jpeg->output_buffer;
  target->dest->free_in_buffer = OUTPUT_BUFFER_SIZE;
  return TRUE;
}

static void finish_output(j_compress_ptr target)
{
  struct codinet_jpeg *jpeg = target->client_data;
  jpeg->append(jpeg->append_to, jpeg->output_buffer, OUTPUT_BUFFER_SIZE - target->dest->free_in_buffer);
}

/* Writes the same coefficients as a baseline JPEG with optimised Huffman tables, a restart marker every `interval` MCUs
 * (0: none), and no metadata, by `append`. After read_header. */
int codinet_jpeg_transcode(struct codinet_jpeg *jpeg, unsigned interval, append *append, void *append_to)
{
  j_compress_ptr target = &jpeg->target;
  if (setjmp(jpeg->on_error))
    return jpeg->fault;
  jvirt_barray_ptr *coefficients = jpeg_read_coefficients(&jpeg->source);
  target->err = &jpeg->errors;
  target->client_data = jpeg;
  jpeg_create_compress(target);
  jpeg->append = append;
  jpeg->append_to = append_to;
  jpeg->destination.init_destination = start_output;
  jpeg->destination.empty_output_buffer = write_output;
  jpeg->destination.term_destination = finish_output;
  target->dest = &jpeg->destination;
  jpeg_copy_critical_parameters(&jpeg->source, target);
  if (target->num_components == 1) {
    /* One component's factors have no effect on its picture, but on where restart markers may lie. */
    target->comp_info[0].h_samp_factor = 1;
    target->comp_info[0].v_samp_factor = 1;
  }
  target->optimize_coding = TRUE;
  target->restart_interval = interval;
  jpeg_write_coefficients(target, coefficients);
  jpeg_finish_compress(target);
  return 0;
}
