/* The least a compiled CGI program can do: what remains of a request's time is the server's. */
#include <unistd.h>

int main(void)
{
    static const char answer[] = "Content-Type: text/plain\r\n\r\nhello\n";
    return write(1, answer, sizeof answer - 1) == sizeof answer - 1 ? 0 : 1;
}
