/* Says hello in C, with libfcgi (Debian: apt install libfcgi-dev).
 *
 *     cc -O2 -o examples/c/hello examples/c/hello.c -lfcgi
 *     python -m gateway --pool /=examples/c/hello --children 4
 *
 * fcgi_stdio.h puts its own printf and stdin in the place of the C library's: a program for CGI becomes one for
 * FastCGI by a loop around it.
 */
#include <fcgi_stdio.h>
#include <stdlib.h>
#include <unistd.h>

static const char *variable(const char *name)
{
    const char *value = getenv(name);

    return value ? value : "";
}

/* Writes what comes from outside so that it is text in HTML, never markup. */
static void put_escaped(const char *text)
{
    for (; *text; text++)
        switch (*text) {
        case '&': printf("&amp;"); break;
        case '<': printf("&lt;"); break;
        case '>': printf("&gt;"); break;
        case '"': printf("&quot;"); break;
        default: putchar(*text);
        }
}

int main(void)
{
    char piece[4096];
    unsigned long answered = 0;

    while (FCGI_Accept() >= 0) {
        size_t got, received = 0;

        while ((got = fread(piece, 1, sizeof piece, stdin)) > 0)
            received += got;
        printf("Content-Type: text/html; charset=utf-8\r\n\r\n"
               "<!DOCTYPE html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>Hello from C</title>\n<p>");
        put_escaped(variable("REQUEST_METHOD"));
        printf(" ");
        put_escaped(variable("PATH_INFO"));
        printf(", query \"");
        put_escaped(variable("QUERY_STRING"));
        printf("\", %lu bytes received.\n<p>Process %d has answered %lu requests.\n</html>\n",
               (unsigned long)received, (int)getpid(), ++answered);
    }
    return 0;
}
