# A warm Perl interpreter: PERL [FLAGS] bootstrap.pl CONTROL CALLS REPORTS NAME MODULE...; Perl 5.16 and later, 64 bits.
#
# What is said to it and by it is in bootstrap.py. CALLS are the numbers of system calls that Perl has no name for.
#
# Some facts about how a child becomes its script. perl compiles its program while it reads it, and a BEGIN block runs
# as soon as it has been read. All of this is one such block, and the last thing in the file. In a child, the file at
# perl's descriptor is exchanged for one that holds the script; then the block ends, and perl reads on: the script is
# the rest of the program, in the main program's place, with its own name and line numbers.
BEGIN {
    package Gateway::Warm;

    # These are the gateway's own words, also where all that comes from outside is tainted.
    my ($control_fd, $calls, $reports, $named, @preload) = map { /^(.*)\z/s } @ARGV;
    @ARGV = ();
    my ($clone, $recvmsg, $sendmsg, $memfd_create, $dup3, $prctl, $setsid, $exit_group) = map { $_ + 0 } split /,/, $calls;
    my $taint = substr("$0$^X", 0, 0);
    my $read = -s $0;    # so far perl has read its program, and there it believes to be
    my ($program) = grep { (readlink("/proc/self/fd/$_") || '') eq _real($0) } 3 .. 63;
    my (%before, %watched, %allowed, @ahead, @own);
    $allowed{$_} = 1 for map { _file($_) } @preload;

    sub _real {
        my ($path) = @_;
        $path = "/proc/self/cwd/$path" if $path !~ m{^/};
        return $path;
    }

    sub _file {
        my ($name) = @_;
        $name =~ s{::}{/}g;
        return "$name.pm";
    }

    # struct msghdr and one descriptor's control message, of 64 bits.
    sub _send_with {
        my ($socket, $text, $descriptor) = @_;
        my $rights = pack 'Q l l l x4', 20, 1, 1, $descriptor;
        my $vector = pack 'P Q', $text, length $text;
        my $header = pack 'Q L x4 P Q P Q l x4', 0, 0, $vector, 1, $rights, length $rights, 0;
        return syscall $sendmsg, fileno($socket), $header, 0;
    }

    sub _receive {
        my ($socket) = @_;
        my $text    = "\0" x 131072;
        my $rights  = "\0" x 64;
        my $vector  = pack 'P Q', $text, length $text;
        my $header  = pack 'Q L x4 P Q P Q l x4', 0, 0, $vector, 1, $rights, length $rights, 0;
        my $got     = syscall $recvmsg, fileno($socket), $header, 0;
        return if $got <= 0;
        my $length = unpack 'Q', substr($rights, 0, 8);
        my @descriptors = unpack 'l*', substr($rights, 16, $length - 16);
        return substr($text, 0, $got), @descriptors;
    }

    sub _identity {
        my ($path) = @_;
        my @found = stat $path or return '';
        return "@found[0, 1, 7, 9]";
    }

    sub _report {
        my (@lines) = @_;
        socket(my $socket, 1, 2, 0) or return;
        # What another child will tell, too, does not wait.
        send $socket, join("\n", @lines), $lines[0] =~ /^m / ? 0x40 : 0, pack('S', 1) . "\0$reports";
        return;
    }

    # What a module must not change: it would be changed for scripts that do not use it.
    sub _world {
        my $mask = umask;    # refused where something tainted is at hand
        opendir my $tasks, '/proc/self/task';
        opendir my $files, '/proc/self/fd';
        return join "\n", scalar(() = readdir $tasks), scalar(() = readdir $files),
            (map { "$_=" . ($ENV{$_} // '') } sort keys %ENV),
            (map { "$_=" . ($SIG{$_} // '') } sort keys %SIG), readlink('/proc/self/cwd'), @INC, $0, $^W, $/, $|, $mask;
    }

    # Whether a file is the interpreter's own, or came with the system's packages: not of this site, nor of a path
    # that somebody has given.
    sub _is_own {
        my ($path) = @_;
        for my $directory (@own) {
            return 1 if index($path, "$directory/") == 0;
        }
        return 0;
    }

    # Whether a module has kept, in one of its variables, what it found in $0; FindBin does.
    sub _has_our_name {
        my ($file) = @_;
        my $package = $file =~ s{/}{::}gr =~ s/\.\w+\z//r;
        my ($directory) = $0 =~ m{^(.*)/};
        for my $name (grep { !/::\z/ } keys %{"${package}::"}) {
            my $value = ${"${package}::$name"};
            return 1 if defined $value && !ref $value && index($value, $directory) >= 0;
        }
        return 0;
    }

    sub _find_own {
        require Config;
        my %foreign = map { $_ => 1 } '.', split(/:/, $ENV{PERL5LIB} // $ENV{PERLLIB} // '');
        $foreign{ $Config::Config{$_} } = 1 for qw(sitelibexp sitearchexp);
        if (open my $arguments, '<', '/proc/self/cmdline') {
            local $/ = "\0";
            while (<$arguments>) { $foreign{$1} = 1 if /^-\w*I([^\0]+)/ }
        }
        return grep { !ref && m{^/} && !$foreign{$_} && !/site_perl/ } @INC;
    }

    sub _import_ahead {
        my ($socket, $file) = @_;
        return if $INC{$file} || $file !~ m{^([\w/]+\.p[lmh])\z};
        $file = $1;
        my $pid = fork;
        return if !defined $pid;
        if (!$pid) {
            my $bad = 0;
            syscall $prctl, 1, 9, 0, 0, 0;    # PR_SET_PDEATHSIG, SIGKILL: it may hang
            local $SIG{__WARN__} = sub { $bad = 1 };
            my $world = _world();
            $bad = 1 if !eval { require $file; 1 };
            $bad = 1 if $world ne _world();
            for my $there (keys %INC) {
                next if $before{$there};
                $bad = 1 if _has_our_name($there) || (!$allowed{$there} && !_is_own($INC{$there} // ''));
            }
            syscall $exit_group, $bad ? 1 : 42;    # what exits by itself says something else
        }
        waitpid $pid, 0;
        if ($? != 42 << 8) {
            send $socket, "n $file", 0;
            return;
        }
        eval { require $file } or return;
        $watched{ $INC{$_} } ||= _identity($INC{$_}) for grep { !$before{$_} && $INC{$_} } keys %INC;
        return;
    }

    sub _unfit {
        my ($verb, $path, $why) = @_;
        $why =~ s/\n/ /g;
        my $is_refused = $verb eq 'W' && "@ahead" ne 'o';    # not for what is so for a moment only
        _report(($is_refused ? 'unfit ' : 'cold ') . $why, @ahead);
        if (!$is_refused) {
            my ($clean) = $path =~ /^(.*)\z/s;
            exec {$clean} $clean;
            _report('exec ' . ($! + 0));
        }
        syscall $exit_group, 127;    # before anything that the script has left runs
    }

    # Returns in the child that has a request, when its program has been laid out.
    sub _serve {
        open my $control, '+<&=', $control_fd or die "descriptor $control_fd: $!\n";
        fcntl $control, 2, 1;
        syscall $prctl, 1, 9, 0, 0, 0;
        @own = _find_own();
        %before = map { $_ => 1 } keys %INC;
        _import_ahead($control, _file($_)) for @preload;
        send $control, sprintf('r %vd', $^V), 0;
        while (1) {
            my $message = '';
            recv $control, $message, 65536, 0;
            syscall $exit_group, 0 if $message eq '';
            if ($message =~ /^f (\d+)/) {
                for (1 .. $1) {
                    my $pid = syscall $clone, 0x8000 | 17, 0, 0, 0, 0;
                    if ($pid < 0) { send $control, 'e', 0 }
                    elsif (!$pid) { return _be_child($control) }
                }
            }
            else {
                _import_ahead($control, $1) while $message =~ /^m (.*)$/mg;
            }
        }
    }

    sub _be_child {
        my ($control) = @_;
        syscall $setsid;
        socketpair my $ours, my $theirs, 1, 1, 0;
        _send_with($control, "c $$", fileno $theirs);
        close $theirs;
        close $control;
        my ($text, @descriptors) = _receive($ours);
        syscall $exit_group, 0 if !defined $text;
        my $end = 8 + unpack 'Q', $text;
        while (length($text) < $end) {
            sysread $ours, $text, $end - length $text, length $text or syscall $exit_group, 0;
        }
        close $ours;
        my $number = 3 - @descriptors;
        for my $descriptor (@descriptors) {
            syscall $dup3, $descriptor, $number++, 0;
            open my $file, '+<&=', $descriptor;
            close $file;
        }
        my ($verb, $path, $directory, @pairs) = split /\0/, substr $text, 8;
        # From outside, as the environment of a fresh process is (perlsec).
        %ENV = map { my ($name, $value) = split /=/, $_, 2; $name => $value . $taint } @pairs;
        if (!chdir +($directory =~ /^(.*)\z/s)[0]) {
            _report('chdir ' . ($! + 0));
            syscall $exit_group, 127;
        }
        return _lay_out($verb, $path);
    }

    sub _lay_out {
        my ($verb, $path) = @_;
        for my $file (keys %watched) {
            if ($watched{$file} ne _identity($file)) {
                @ahead = ('o');
                _unfit($verb, $path, "$file has changed");
            }
        }
        _unfit($verb, $path, 'its path cannot stand in a #line') if $path =~ /["\n]/;
        open my $script, '<', $path or _unfit($verb, $path, "$!");
        my $text = do { local $/; <$script> };
        close $script;
        _unfit($verb, $path, 'it changes @INC by itself') if $text =~ /unshift\s*\(?\s*\@INC|\@INC\s*=[^~=]/;
        my $label = 'script';
        my $memory = syscall $memfd_create, $label, 1;
        _unfit($verb, $path, "no memory: $!") if $memory < 0;
        open my $copy, '+<&=', $memory;
        # The script once more is what who goes back to the begin of DATA's file looks for.
        syswrite $copy, substr($text . "\n" x $read, 0, $read) . "\n#line 1 \"$path\"\n$text";
        sysseek $copy, $read, 0;
        syscall $dup3, $memory, $program, 0x80000;
        close $copy;
        _watch_lib($verb, $path);
        $0 = $path . $taint;
        # Perl has named the process so, too.
        my $executed = $named eq 'script' ? $path : $^X;
        my $short = substr $executed, rindex($executed, '/') + 1;
        syscall $prctl, 15, $short, 0, 0, 0;
        $^T = time;
        $! = $? = 0;
        srand if %watched;    # one that asked for a random number when it was imported has begun the sequence for all
        return;
    }

    # A directory that the script adds goes before those that modules were taken from; what it has is meant instead.
    sub _watch_lib {
        my ($verb, $path) = @_;
        return if !$INC{'lib.pm'} || !%watched;
        my $import = \&lib::import;
        my @files = grep { !$before{$_} } keys %INC;
        no warnings 'redefine';
        *lib::import = sub {
            my (undef, @directories) = @_;    # which it shifts from @_
            &$import;
            for my $directory (@directories) {
                for my $file (@files) {
                    _unfit($verb, $path, "$directory/$file is not the $file that was imported ahead")
                        if -e "$directory/$file" && $INC{$file} ne "$directory/$file";
                }
            }
        };
        return;
    }

    _serve();
    my %there = %INC;

    sub _tell_news {
        my @new = grep { !$there{$_} && defined $INC{$_} && !ref $INC{$_} && _is_own($INC{$_}) } keys %INC;
        _report(map { "m $_" } @new) if @new;
        return;
    }
    eval 'package Gateway::Warm; END { local ($?, $!, $@); _tell_news() }';
}
