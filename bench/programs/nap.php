<?php
// A request that takes its child 5 ms and the CPU nearly nothing.
usleep(5000);
echo "hello\n";
