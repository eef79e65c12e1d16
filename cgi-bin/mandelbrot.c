/* A picture by a compiled program: the Mandelbrot set as a BMP image.
 *
 *     make -C cgi-bin
 *     http://127.0.0.1:8000/cgi-bin/mandelbrot?x=-0.75&y=0.1&width=0.05
 *
 * The server runs whatever file of its directory is executable. This one is not, so it is answered with 403
 * Forbidden; the program that cc makes of it is.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH = 480, HEIGHT = 320, STEPS = 250, HEADER = 54 };

/* A number out of the query, `fallback` where there is none or where it lies outside of -limit…limit. */
static double number(const char *query, const char *name, double fallback, double limit)
{
    size_t length = strlen(name);
    const char *at = query;

    while (at) {
        if (strncmp(at, name, length) == 0 && at[length] == '=') {
            char *end;
            double value = strtod(at + length + 1, &end);
            int whole = end != at + length + 1 && (*end == '&' || *end == '\0');
            return whole && value >= -limit && value <= limit ? value : fallback;
        }
        at = strchr(at, '&');
        if (at)
            at++;
    }
    return fallback;
}

static void put_little_endian(uint8_t *at, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        at[i] = (uint8_t)(value >> 8 * i);
}

static int steps_to_leave(double x, double y)
{
    double re = 0, im = 0;
    int step = 0;

    while (step < STEPS && re * re + im * im < 4) {
        double next = re * re - im * im + x;
        im = 2 * re * im + y;
        re = next;
        step++;
    }
    return step;
}

int main(void)
{
    static uint8_t image[HEADER + 3 * WIDTH * HEIGHT]; /* 3 * WIDTH is a multiple of 4, as BMP wants it */
    const char *query = getenv("QUERY_STRING");
    double x, y, width;
    uint8_t *pixel = image + HEADER;

    if (!query)
        query = "";
    x = number(query, "x", -0.6, 4);
    y = number(query, "y", 0, 4);
    width = number(query, "width", 3.2, 16);

    memcpy(image, "BM", 2);
    put_little_endian(image + 2, sizeof image);
    put_little_endian(image + 10, HEADER);
    put_little_endian(image + 14, 40);
    put_little_endian(image + 18, WIDTH);
    put_little_endian(image + 22, HEIGHT);
    image[26] = 1;  /* plane */
    image[28] = 24; /* bits a pixel: blue, green, red; the rows from the bottom up */

    for (int row = 0; row < HEIGHT; row++)
        for (int column = 0; column < WIDTH; column++) {
            int step = steps_to_leave(x + width * ((double)column / WIDTH - 0.5),
                                      y + width * ((double)row - HEIGHT / 2) / WIDTH);
            int inside = step == STEPS;
            *pixel++ = inside ? 0 : (uint8_t)(64 + 190 * step / STEPS);
            *pixel++ = inside ? 0 : (uint8_t)(step * 5);
            *pixel++ = inside ? 0 : (uint8_t)(step * 2);
        }

    /* The header as text, an empty line, then any bytes. */
    printf("Content-Type: image/bmp\nContent-Length: %zu\n\n", sizeof image);
    return fwrite(image, sizeof image, 1, stdout) == 1 && fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
