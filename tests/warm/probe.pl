use strict;
use warnings;
BEGIN { our @early = ($0, __FILE__, __LINE__, ${^GLOBAL_PHASE}, scalar(caller) // 'none', "@ARGV"); }
our @early;
my (%told, $data);
my @first = sort grep { !/^(?:warnings|strict)\.pm$/ } keys %INC;

sub note { my ($name, @values) = @_; $told{$name} = join '|', map { defined ? $_ : 'undef' } @values; return }
sub slurp { my ($path) = @_; open my $file, '<', $path or return "$!"; local $/; return scalar <$file> }

END { print "end $?\n" if !$told{child} }

note(early => @early);
note(env => map { "$_=$ENV{$_}" } sort keys %ENV);
note(argv => scalar @ARGV, @ARGV);
note(names => $0, __FILE__, __LINE__, __PACKAGE__, (caller)[0] // 'none', defined &main::none ? 1 : 0);
note(inc => @INC);
note(interpreter => $^X, $^V, $], $^O, $^W, ${^TAINT}, ${^UNICODE}, ${^UTF8LOCALE}, ${^OPEN} // '', $^P, $^D, $^H & 0x7ffff, $^C, $^M // '');
note(separators => $/, $\, $,, $", $;, $|, $., $^A, $^L, $:, $%, $=, $-, $~, $^);
note(errors => $@, $?, $^S);
note(time => abs($^T - time) < 30 ? 1 : 0, $^T <= time ? 1 : 0);
note(ids => $<, $>, $(, $));
note(pid => $$ == getppid ? 1 : 0, (split ' ', slurp('/proc/self/stat'))[0] == $$ ? 1 : 0, readlink('/proc/' . getppid() . '/exe'));
note(cwd => readlink '/proc/self/cwd');
note(umask => umask);
note(signals => map { "$_=" . ($SIG{$_} // 'undef') } sort keys %SIG);
my $status = slurp('/proc/self/status');
note(status => $status =~ /^((?:Name|Umask|Threads|SigPnd|SigBlk|SigIgn|SigCgt|NoNewPrivs|CapEff|Groups):.*)$/mg);
note(group => getpgrp == $$ ? 1 : 0, (split ' ', (slurp('/proc/self/stat') =~ /.*\)(.*)/)[0])[3] == $$ ? 1 : 0);
note(comm => slurp('/proc/self/comm'));
note(exe => readlink '/proc/self/exe');
opendir my $directory, '/proc/self/fd' or die;
note(descriptors => sort map { "$_ " . ((readlink "/proc/self/fd/$_") =~ /^(\w+|\/dev\/null)/ ? $1 : '') }
    grep { /^[012]$/ } readdir $directory);
rewinddir $directory;
note(others => map { readlink "/proc/self/fd/$_" } grep { /^\d+$/ && $_ > 3 && $_ != fileno $directory } readdir $directory);
closedir $directory;
note(layers => map { join ',', PerlIO::get_layers($_) } *STDIN, *STDOUT, *STDERR);
note(numbers => map { fileno($_) } *STDIN, *STDOUT, *STDERR);
note(buffering => map { my $old = select $_; my $is = $|; select $old; $is } *STDOUT, *STDERR);
note(selected => select);
note(main => sort grep { !/^(?:_<|Gateway|_GEN|BEGIN|END|told|early|first|data|[a-z]\b)/ && defined &{"main::$_"} } keys %main::);
note(line => eval { die 'x' } // $@);
note(warned => do { my $w = ''; local $SIG{__WARN__} = sub { $w = shift }; my $u; my $v = "a$u"; $w });
note(frames => scalar(() = caller(0)), (sub { join ',', map { $_ // '' } caller(0) })->());
note(carp => eval { require Carp; Carp::confess('deep') } // $@);
note(program => (stat $0)[7] == -s __FILE__ ? 1 : 0);
note(shell => `echo "\$0 \$# \$PATH"; umask; pwd; ls /proc/self/fd | tr '\\n' ' '; ulimit -n`);
note(perl => `$^X -e 'print "\$0 \@ARGV " . join ",", sort keys %ENV'`);
note(system => system('exit 3'), $? >> 8);
my $pid = fork // die;
if (!$pid) { $told{child} = 1; exit 7 }
waitpid $pid, 0;
note(fork => $? >> 8);
note(wait => wait, $? , $! + 0);
note(rand => do { srand 5; int rand 1e6 }, do { srand 5; int rand 1e6 });
note(sorted => join ',', sort { $a <=> $b } 3, 1, 2);
note(local => scalar localtime 0);
note(stdin => do { local $/; <STDIN> });
note(eof => eof(STDIN) ? 1 : 0, defined(<STDIN>) ? 1 : 0);
$data = do { local $/; <DATA> };
note(data => $data, fileno(DATA) > 2 ? 1 : 0);
note(sub => (sub { (caller(0))[1, 2] })->());
note(string_eval => eval q{ join ',', __FILE__, __LINE__ });
note(bad_eval => eval q{ 1 + ; } // $@);
note(do => do './nothing.pl', $! + 0);
note(require => eval { require No::Such::Module } // $@);
print "Content-Type: text/plain\n\n";
print map { "$_: $told{$_}\n" } sort keys %told;
print STDERR "on stderr\n";
warn 'warned';
exit 0;
__DATA__
the data é
  of the script
