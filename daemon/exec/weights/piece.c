/* Reading, packing and checking of one piece. */
#include "daemon/exec/weights/piece.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "daemon/exec/weights/fingerprint.h"
#include "kernels/linear.h"

#define WIDEN_AT_ONCE 4096
#define NEAR_BYTES 65536u /* scales that far behind the codes are read along with them */

static int bad(struct err *err, struct ck_tensor at, const char *found, size_t i,
	       const char *wanted)
{
	return err_set(err, -EBADMSG, "'%s': tensor '%s' has %s at index %zu, wanted %s",
		       st_file_path(at.file), at.t->name, found, i, wanted);
}

static float widen(const void *data, enum dtype type, size_t i)
{
	uint16_t half;
	uint32_t bits;
	float f;

	if (type == DT_F32) {
		memcpy(&f, (const char *)data + 4 * i, 4);
		return f;
	}
	memcpy(&half, (const char *)data + 2 * i, 2);
	if (type == DT_BF16) {
		bits = (uint32_t)half << 16;
		memcpy(&f, &bits, 4);
		return f;
	}
	f = ldexpf((float)(half & 0x3ff) + (half & 0x7c00 ? 1024 : 0),
		   (half & 0x7c00 ? half >> 10 & 31 : 1) - 25);
	if ((half & 0x7c00) == 0x7c00)
		f = half & 0x3ff ? NAN : INFINITY;
	return half & 0x8000 ? -f : f;
}

static const char *name_value(float f, char buffer[40])
{
	if (isnan(f))
		return "NaN";
	if (isinf(f))
		return f < 0 ? "-infinity" : "infinity";
	if (f == 0)
		return "zero";
	snprintf(buffer, 40, "%g", f);
	return buffer;
}

static struct st_tensor rows_of(const struct st_tensor *t, uint32_t of, uint32_t first,
				uint32_t rows)
{
	struct st_tensor part = *t;

	part.bytes = t->bytes / of * rows;
	part.offset += t->bytes / of * first;
	return part;
}

static struct st_tensor codes_of(const struct piece *p)
{
	const struct ck_linear *w = p->w;

	return w ? rows_of(w->plain.t ? w->plain.t : w->packed.t, w->rows, p->first_row, p->rows)
		 : *p->vector.t;
}

static const struct st_file *file_of(const struct piece *p)
{
	if (!p->w)
		return p->vector.file;
	return p->w->plain.t ? p->w->plain.file : p->w->packed.file;
}

struct extent piece_extent(const struct piece *p)
{
	const struct st_tensor codes = codes_of(p);
	struct extent e = { file_of(p), codes.offset, codes.offset + codes.bytes };
	struct st_tensor scales;

	if (!p->w || p->w->scales.file != e.file)
		return e;
	scales = rows_of(p->w->scales.t, p->w->rows, p->first_row, p->rows);
	if (scales.offset >= e.to && scales.offset - e.to <= NEAR_BYTES)
		e.to = scales.offset + scales.bytes;
	else if (scales.offset < e.from && e.from - scales.offset <= NEAR_BYTES + scales.bytes)
		e.from = scales.offset;
	return e;
}

/* Finds a tensor in what was read, or else reads it to @room. */
static int find(const struct window *have, const struct st_file *file, const struct st_tensor *t,
		void *room, const void **ret, struct err *err)
{
	const uint64_t skip = t->offset - have->at;
	int r;

	if (file == have->file && t->offset >= have->at && skip <= have->bytes &&
	    t->bytes <= have->bytes - skip) {
		*ret = have->data + skip;
		return 0;
	}
	r = st_file_read(file, t, room, err);
	if (r == 0)
		*ret = room;
	return r;
}

static int load_vector(const struct piece *p, const struct window *have, void *room,
		       struct fingerprint *fingerprint, struct err *err)
{
	const struct st_tensor *t = p->vector.t;
	const void *values;
	float some[WIDEN_AT_ONCE];
	char buffer[40];
	int r;

	r = find(have, p->vector.file, t, room, &values, err);
	if (r < 0)
		return r;
	if (!p->repeats)
		fingerprint_add(fingerprint, p->vector.file, t->offset, values, t->bytes, t->bytes);
	for (size_t done = 0, k; done < p->rows; done += k) {
		for (k = 0; k < WIDEN_AT_ONCE && done + k < p->rows; k++) {
			const size_t at = p->first_row + done + k;

			some[k] = widen(values, t->type, at);
			if (!isfinite(some[k]))
				return bad(err, p->vector, name_value(some[k], buffer), at,
					   "a finite number");
		}
		r = dev_write(p->dev, (float *)p->data + done, some, k * sizeof(*some));
		if (r < 0)
			return err_wrap(err, r, "cannot copy tensor '%s' to the device", t->name);
	}
	return 0;
}

static int check_shape(const struct ck_linear *w, const struct window *have, struct err *err)
{
	const bool wide = w->shape.t->type == DT_I64;
	int64_t found[2], room[2];
	int32_t narrow[2];
	const void *said;
	int r;

	r = find(have, w->shape.file, w->shape.t, room, &said, err);
	if (r < 0)
		return r;
	memcpy(wide ? (void *)found : (void *)narrow, said, w->shape.t->bytes);
	for (int i = 0; !wide && i < 2; i++)
		found[i] = narrow[i];
	if (found[0] != w->rows || found[1] != w->cols)
		return err_set(err, -EBADMSG,
			       "'%s': tensor '%s' says [%lld, %lld], wanted [%u, %u]",
			       st_file_path(w->shape.file), w->shape.t->name, (long long)found[0],
			       (long long)found[1], w->rows, w->cols);
	return 0;
}

/* @t is the piece's part of a tensor: as many rows. */
static void add_rows(struct fingerprint *fingerprint, const struct piece *p,
		     const struct st_file *file, const struct st_tensor *t, const void *data)
{
	fingerprint_add(fingerprint, file, t->offset, data, t->bytes,
			t->bytes / p->rows * FINGERPRINT_ROWS);
}

static bool is_cut(const struct piece *p)
{
	return p->w && p->cols < p->w->cols;
}

/* Columns that share a scale where columns are cut out: a cut may go through a larger group. */
#define CUT_GROUP 32

static size_t cut_bytes(const struct ck_linear *w, uint32_t cols)
{
	return w->plain.t ? cols * dtype_bytes(w->plain.t->type) : cols / 8 * sizeof(uint32_t);
}

static size_t cut_scale_bytes(const struct ck_linear *w, uint32_t cols)
{
	return w->plain.t ? 0 : cols / CUT_GROUP * dtype_bytes(w->scales.t->type);
}

size_t piece_room(const struct piece *p)
{
	if (!is_cut(p))
		return p->bytes;
	return p->bytes + p->rows * (cut_bytes(p->w, p->cols) + cut_scale_bytes(p->w, p->cols));
}

/* Copies the piece's columns of @src to @room, and makes that the source. */
static void cut_columns(const struct piece *p, struct weight_source *src, char *room)
{
	const struct ck_linear *w = p->w;
	const size_t bytes = cut_bytes(w, p->cols), row_bytes = cut_bytes(w, w->cols);
	const size_t n_scales = p->cols / CUT_GROUP,
		     one = w->scales.t ? dtype_bytes(src->scale_type) : 0;
	char *scales = room + p->rows * bytes;

	for (uint32_t r = 0; r < p->rows; r++) {
		memcpy(room + r * bytes,
		       (const char *)src->data + r * row_bytes + cut_bytes(w, p->first_col), bytes);
		for (size_t i = 0; w->scales.t && i < n_scales; i++)
			memcpy(scales + (r * n_scales + i) * one,
			       (const char *)src->scales +
				       (r * (w->cols / w->group) +
					(p->first_col + i * CUT_GROUP) / w->group) *
					       one,
			       one);
	}
	src->cols = p->cols;
	src->data = room;
	src->scales = w->scales.t ? scales : NULL;
	src->group = w->scales.t ? CUT_GROUP : w->group;
}

/* Where in its tensor a scale is that stands at @i of @src. */
static size_t scale_index(const struct piece *p, const struct weight_source *src, size_t i)
{
	const size_t per_row = src->cols / src->group, row = p->first_row + i / per_row;

	return row * (p->w->cols / p->w->group) +
	       (p->first_col + i % per_row * src->group) / p->w->group;
}

static int load_matrix(const struct piece *p, const struct window *have, char *room,
		       struct fingerprint *fingerprint, struct err *err)
{
	const struct ck_linear *w = p->w;
	const struct st_tensor codes = codes_of(p);
	const struct weight to = {
		.kind = p->kind, .rows = p->rows, .cols = p->cols, .data = p->data
	};
	struct weight_source src = {
		.rows = p->rows, .cols = w->cols, .type = codes.type, .group = w->group
	};
	struct st_tensor scales;
	char buffer[40];
	size_t i = 0;
	int r;

	r = find(have, file_of(p), &codes, room, &src.data, err);
	if (r < 0)
		return r;
	if (w->scales.t) {
		scales = rows_of(w->scales.t, w->rows, p->first_row, p->rows);
		src.scale_type = scales.type;
		r = find(have, w->scales.file, &scales, room + codes.bytes, &src.scales, err);
		if (r < 0 || (p->first_row == 0 && (r = check_shape(w, have, err)) < 0))
			return r;
		if (!p->repeats)
			add_rows(fingerprint, p, w->scales.file, &scales, src.scales);
	}
	if (!p->repeats)
		add_rows(fingerprint, p, file_of(p), &codes, src.data);
	if (is_cut(p))
		cut_columns(p, &src, room + p->bytes);
	weight_touch(p->dev, &to, p->at_row, p->of_rows);
	r = op_repack(p->dev, &to, &src, &i);
	if (r == -EDOM)
		return bad(err, w->scales, name_value(widen(src.scales, src.scale_type, i), buffer),
			   scale_index(p, &src, i), "a positive scale");
	if (r < 0)
		return err_set(err, r, "'%s': tensor '%s' cannot be packed",
			       st_file_path(file_of(p)), codes.name);
	return 0;
}

int piece_load(const struct piece *p, const struct window *have, void *room,
	       struct fingerprint *fingerprint, struct err *err)
{
	return p->w ? load_matrix(p, have, room, fingerprint, err)
		    : load_vector(p, have, room, fingerprint, err);
}
